"""Norms, each with the addition that comes before it.

What runs through the layers is kept as a sum, `residual`, and what is still to be added to it, `x`: norms add and
normalise in one pass.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import layer_norm

from kernels.norm import add_rms_norm


class Norm(Protocol):
    """x, residual: [tokens, size]."""

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(The norm of the sum, the sum, which overwrites `residual`.)"""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


class RMSNorm:
    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, residual, self.weight, self.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return add_rms_norm(x, None, self.weight, self.eps)[0]


class LayerNorm:
    """Ba et al. 2016, arXiv:1607.06450, with or without weight and bias."""

    def __init__(self, size: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.size, self.weight, self.bias, self.eps = (size,), weight, bias, eps

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x if residual is None else residual.add_(x)
        return self(total), total

    def __call__(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return layer_norm(x, self.size, weight, self.bias, self.eps)


class NoNorm:
    """Only adds."""

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x if residual is None else residual.add_(x)
        return total, total

    def __call__(self, x: Tensor) -> Tensor:
        return x
