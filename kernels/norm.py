"""Residual addition and RMSNorm in one pass.

r' = r + x            (skipped without a residual)
y  = r' / sqrt(mean(r'^2) + eps) * weight          Zhang & Sennrich 2019, arXiv:1910.07467
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_rms_norm_kernel(
    x, residual, weight, out, eps, hidden, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    values = tl.load(x + row + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        summed = values.to(tl.float32) + tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
        values = summed.to(residual.dtype.element_ty)
        tl.store(residual + row + columns, values, mask=inside)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)
    normed = (wide * scale).to(out.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, (normed * gain).to(out.dtype.element_ty), mask=inside)


def add_rms_norm_triton(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As add_rms_norm; rows are contiguous."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    warps = min(max(block // 512, 1), 16)
    _add_rms_norm_kernel[(tokens,)](
        x, x if residual is None else residual, weight, out, eps, hidden, residual is not None, block, x.is_cuda,
        num_warps=warps, launch_pdl=x.is_cuda,
    )  # fmt: skip
    return out, x if residual is None else residual


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension, computed in fp32, in the dtype of `x`."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).to(x.dtype).mul_(weight)


def add_rms_norm_torch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As add_rms_norm."""
    if residual is not None:
        x = residual.add_(x)
    return rms_norm(x, weight, eps), x


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (norm of the sum, the sum, which overwrites `residual`). x, residual: [tokens, hidden]; weight: [hidden]."""
    run = add_rms_norm_triton if x.is_cuda else add_rms_norm_torch
    return run(x, residual, weight, eps)
