"""Residual addition and RMSNorm in one pass.

r' = r + x            (skipped without a residual)
y  = r' / sqrt(mean(r'^2) + eps) * weight          Zhang & Sennrich 2019, arXiv:1910.07467
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension, computed in fp32, in the dtype of `x`."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (norm of the sum, the sum). x, residual: [tokens, hidden]; weight: [hidden]."""
    if residual is not None:
        x = residual.add_(x)
    return rms_norm(x, weight, eps), x
