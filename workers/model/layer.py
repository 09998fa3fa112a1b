"""One layer: how norms, attention and MLP hang together. Its parts are objects of one small interface each.

What runs through the layers is `residual`, and `x` is what is still to be added to it (see `workers.model.norms`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.model.attention import Attention, AttentionLike
from workers.model.batch import Step
from workers.model.config import LatentAttentionConfig, LayerConfig, MoEConfig
from workers.model.latent_attention import LatentAttention
from workers.model.mlp import MLPLike, build_mlp
from workers.model.moe import MoE
from workers.model.names import WeightNames
from workers.model.weights import Weights


def _attention(config: LayerConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> AttentionLike:
    if isinstance(config.attention, LatentAttentionConfig):
        return LatentAttention(config.attention, hidden, weights, names, table)
    return Attention(config.attention, hidden, weights, names, table)


def _mlp(config: LayerConfig, hidden: int, weights: Weights, names: WeightNames) -> MLPLike:
    if isinstance(config.mlp, MoEConfig):
        return MoE(config.mlp, hidden, weights, names)
    return build_mlp(config.mlp, hidden, weights, names)


class Layer(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None, step: Step, cache: Tensor) -> tuple[Tensor, Tensor | None]:
        """x, residual: [tokens, hidden]; residual is None where nothing came before x. Both may be overwritten."""
        ...


class _Parts:
    """What the layers of every wiring are made of; `table` is the index of the rotation in a step's."""

    def __init__(self, config: LayerConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> None:
        self.attention_norm = weights.norm(names.attention_norm, config.attention_norm, hidden)
        self.attention = _attention(config, hidden, weights, names, table)
        self.mlp_norm = weights.norm(names.mlp_norm, config.mlp_norm, hidden)
        self.mlp = _mlp(config, hidden, weights, names)


class PreNormLayer(_Parts):
    def __call__(self, x: Tensor, residual: Tensor | None, step: Step, cache: Tensor) -> tuple[Tensor, Tensor | None]:
        x, residual = self.attention_norm.add(x, residual)
        x, residual = self.mlp_norm.add(self.attention(x, step, cache), residual)
        return self.mlp(x), residual


class SandwichLayer(_Parts):
    """Norms on what attention and MLP give, too, or only there; and scaled residuals."""

    def __init__(self, config: LayerConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> None:
        super().__init__(config, hidden, weights, names, table)
        self.attention_post_norm = weights.norm(names.attention_post_norm, config.attention_post_norm, hidden)
        self.mlp_post_norm = weights.norm(names.mlp_post_norm, config.mlp_post_norm, hidden)
        self.scale = config.residual_scale

    def __call__(self, x: Tensor, residual: Tensor | None, step: Step, cache: Tensor) -> tuple[Tensor, Tensor | None]:
        x, residual = self.attention_norm.add(x, residual)
        x = self._scaled(self.attention_post_norm(self.attention(x, step, cache)))
        x, residual = self.mlp_norm.add(x, residual)
        return self._scaled(self.mlp_post_norm(self.mlp(x))), residual

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1.0 else x * self.scale


class ParallelLayer(_Parts):
    """Attention and MLP of the same x; one norm for both where the MLP has none."""

    def __init__(self, config: LayerConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> None:
        super().__init__(config, hidden, weights, names, table)
        self.shares_norm = config.mlp_norm is None

    def __call__(self, x: Tensor, residual: Tensor | None, step: Step, cache: Tensor) -> tuple[Tensor, Tensor | None]:
        x, residual = self.attention_norm.add(x, residual)
        inner = self.mlp(x if self.shares_norm else self.mlp_norm(residual))
        return inner.add_(self.attention(x, step, cache)), residual


class PostNormLayer(_Parts):
    """Norms of the sums: nothing stays to be added."""

    def __call__(self, x: Tensor, residual: Tensor | None, step: Step, cache: Tensor) -> tuple[Tensor, Tensor | None]:
        assert residual is None
        x = self.attention_norm(self.attention(x, step, cache).add_(x))
        return self.mlp_norm(self.mlp(x).add_(x)), None


def build_layer(config: LayerConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> Layer:
    post_norms = config.attention_post_norm is not None or config.mlp_post_norm is not None
    kind: type[PreNormLayer] | type[SandwichLayer] | type[ParallelLayer] | type[PostNormLayer] = PreNormLayer
    if config.wiring == "parallel":
        kind = ParallelLayer
    elif config.wiring == "post":
        kind = PostNormLayer
    elif post_norms or config.residual_scale != 1.0:
        kind = SandwichLayer
    return kind(config, hidden, weights, names, table)
