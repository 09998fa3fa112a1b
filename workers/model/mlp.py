"""The MLP of a layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from workers.model.config import Activation, MLPConfig
from workers.model.linear import Linear
from workers.model.names import WeightNames
from workers.model.weights import Weights


class MLPLike(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden], normed; returns the same shape."""
        ...


class SiluMLP:
    """Gated by silu, which the products' kernels do in passing."""

    def __init__(self, config: MLPConfig, hidden: int, weights: Weights, names: WeightNames) -> None:
        self.gate_up = Linear(*weights.stacked(names.gate_up, [config.size, config.size], hidden, config.bias))
        self.down = Linear(*weights.linear(names.down, hidden, config.size, config.bias))

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up.gated(x))


class MLP:
    """With any activation, gated or not."""

    def __init__(self, config: MLPConfig, hidden: int, weights: Weights, names: WeightNames) -> None:
        self.config = config
        sizes = [config.size] * (2 if config.gated else 1)
        self.up = Linear(*weights.stacked(names.gate_up, sizes, hidden, config.bias))
        self.down = Linear(*weights.linear(names.down, hidden, config.size, config.bias))

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if not self.config.gated:
            return self.down(activate(inner, self.config.activation))
        gate, up = inner.chunk(2, -1)
        return self.down(activate(gate, self.config.activation) * up)


def activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "silu":
            return silu(x)
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            return gelu(x, approximate="tanh")
        case "relu":
            return relu(x)
        case "relu2":
            return relu(x).square()


def build_mlp(config: MLPConfig, hidden: int, weights: Weights, names: WeightNames) -> MLPLike:
    kind = SiluMLP if config.gated and config.activation == "silu" else MLP
    return kind(config, hidden, weights, names)
