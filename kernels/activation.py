"""The gate of a gated MLP: silu(gate) * up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _silu_mul_kernel(gate_up, out, inner, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < inner
    gate = tl.load(gate_up + row * 2 * inner + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + columns, mask=inside, other=0.0).to(tl.float32)
    act = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * inner + columns, (act * up).to(out.dtype.element_ty), mask=inside)


def silu_mul_triton(gate_up: Tensor) -> Tensor:
    """As silu_mul; rows are contiguous."""
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, inner)
    block = min(1024, triton.next_power_of_2(inner))
    _silu_mul_kernel[(tokens, triton.cdiv(inner, block))](
        gate_up, out, inner, block, gate_up.is_cuda, num_warps=4, launch_pdl=gate_up.is_cuda
    )
    return out


def silu_mul_torch(gate_up: Tensor) -> Tensor:
    """As silu_mul."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up. gate_up: [tokens, 2 * intermediate], gate first; returns [tokens, intermediate]."""
    return silu_mul_triton(gate_up) if gate_up.is_cuda else silu_mul_torch(gate_up)
