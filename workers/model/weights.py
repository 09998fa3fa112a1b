"""Reads a decoder's parts from a checkpoint, by the names that its family declares."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.model.config import NormConfig
from workers.model.norms import LayerNorm, NoNorm, Norm, RMSNorm

GetWeight = Callable[..., Tensor]
"""get(name, shape): the tensor of that checkpoint name, on the model's device and in its dtype, or in that of a third
argument."""

_AT_ONCE = 8
"""Tensors of experts: each is too small to be read by several threads itself."""


class Dense(NamedTuple):
    """weight: [out, in]; bias: [out]."""

    weight: Tensor
    bias: Tensor | None

    def rows(self, order: Tensor | None) -> Dense:
        """With the outputs in another order; None: as they are."""
        if order is None:
            return self
        order = order.to(self.weight.device)
        return Dense(self.weight[order], None if self.bias is None else self.bias[order])


@dataclass(frozen=True, slots=True)
class Weights:
    """The part of a checkpoint whose names begin with `prefix`. transposed: its matrices are [in, out]."""

    get: GetWeight
    prefix: str = ""
    transposed: bool = False

    def under(self, prefix: str) -> Weights:
        return Weights(self.get, self.prefix + prefix, self.transposed)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.get(self.prefix + name, shape)

    def wide(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """In fp32, whatever the model's dtype is."""
        return self.get(self.prefix + name, shape, torch.float32)

    def bytes(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Of a quantized weight, as they are stored: uint8."""
        return self.get(self.prefix + name, shape, torch.uint8)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool) -> Dense:
        shape = (inputs, outputs) if self.transposed else (outputs, inputs)
        weight = self.tensor(f"{name}.weight", shape)
        if self.transposed:
            weight = weight.T.contiguous()
        return Dense(weight, self.tensor(f"{name}.bias", (outputs,)) if bias else None)

    def stacked(self, names: tuple[str, ...], sizes: list[int], inputs: int, bias: bool) -> Dense:
        """Several products as one: from a tensor each, or from one that holds them one below the other."""
        if len(names) == 1:
            return self.linear(names[0], sum(sizes), inputs, bias)
        parts = [self.linear(name, size, inputs, bias) for name, size in zip(names, sizes, strict=True)]
        weight = torch.cat([part.weight for part in parts])
        return Dense(weight, torch.cat([part.bias for part in parts if part.bias is not None]) if bias else None)

    def each(self, names: tuple[str, ...], count: int, sizes: list[int], inputs: int) -> Tensor:
        """[count, sum of sizes, inputs] of tensors whose names take an index, several of which are read at once and put in
        their places: there is no second copy of the whole."""
        sample = self.linear(names[0].format(0), sizes[0], inputs, False).weight
        out = sample.new_empty(count, sum(sizes), inputs)

        def read(index: int) -> None:
            row = 0
            for name, size in zip(names, sizes, strict=True):
                out[index, row : row + size] = self.linear(name.format(index), size, inputs, False).weight
                row += size

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(read, range(count)))
        return out

    def norm(self, name: str, config: NormConfig | None, size: int) -> Norm:
        """The norm of `size` values; one that does nothing where there is no config."""
        return NoNorm() if config is None else self._norm(name, config, (size,))

    def norm_weight(self, name: str, config: NormConfig, shape: tuple[int, ...]) -> Tensor:
        """With its offset, then in fp32: 1 + w has more bits than w."""
        weight = self.tensor(f"{name}.weight", shape)
        return weight.float() + config.offset if config.offset else weight

    def _norm(self, name: str, config: NormConfig, shape: tuple[int, ...]) -> Norm:
        weight = self.norm_weight(name, config, shape) if config.weight else None
        if config.kind == "rms":
            assert weight is not None
            return RMSNorm(weight, config.eps)
        bias = self.tensor(f"{name}.bias", shape) if config.bias else None
        return LayerNorm(shape[-1], weight, bias, config.eps)
