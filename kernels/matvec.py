"""y = W x for one row, bound by reading W once: what a single stream's decode step consists of.

A library product tiles for many rows and leaves bandwidth unused when there is one. Each program owns two rows of W and
streams them through once, and reads the first part of them before it waits for the kernels before. With `gated`, W holds a
gate and an up half, and silu(gate) * up is applied before anything is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _matvec_kernel(
    x, weight, bias, out, inputs, outputs,
    TILE: tl.constexpr, CHUNK: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < outputs
    chunk = tl.arange(0, CHUNK)
    source = weight + row[:, None].to(tl.int64) * inputs + chunk[None, :]
    valid = inside[:, None] & (chunk < inputs)[None, :]
    # weights depend on no kernel before: the first ones are read while the kernels before still run
    weights = tl.load(source, mask=valid, other=0.0)
    second = weights
    if GATED:
        second = tl.load(source + outputs * inputs, mask=valid, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + chunk, mask=chunk < inputs, other=0.0).to(tl.float32)[None, :]
    acc = weights.to(tl.float32) * values
    up = second.to(tl.float32) * values
    for start in range(CHUNK, inputs, CHUNK):
        valid = inside[:, None] & (start + chunk < inputs)[None, :]
        values = tl.load(x + start + chunk, mask=start + chunk < inputs, other=0.0).to(tl.float32)[None, :]
        acc += tl.load(source + start, mask=valid, other=0.0).to(tl.float32) * values
        if GATED:
            up += tl.load(source + outputs * inputs + start, mask=valid, other=0.0).to(tl.float32) * values
    kind = out.dtype.element_ty
    total = tl.sum(acc, 1)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        gate = total.to(kind).to(tl.float32)
        total = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32) * tl.sum(up, 1).to(kind).to(tl.float32)
    tl.store(out + row, total.to(kind), mask=inside)


def _shape(outputs: int, inputs: int) -> tuple[int, int]:
    """(columns at a time, warps), by measurement on an H200: a small product needs many warps to have loads in flight."""
    if inputs <= 1024:
        return min(512, triton.next_power_of_2(inputs)), 2
    return min(4096, triton.next_power_of_2(inputs)), 8 if outputs <= 2048 else 4


def matvec_triton(x: Tensor, weight: Tensor, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """x: [1, in]; weight: [out, in], or [2 * out, in] where gated; bias: [out], not with gated. Returns [1, out]."""
    assert x.shape[0] == 1
    assert not (gated and bias is not None)
    inputs = x.shape[1]
    outputs = weight.shape[0] // (2 if gated else 1)
    out = x.new_empty(1, outputs)
    chunk, warps = _shape(outputs, inputs)
    _matvec_kernel[(triton.cdiv(outputs, 2),)](
        x, weight, weight if bias is None else bias, out, inputs, outputs, 2, chunk, gated, bias is not None,
        x.is_cuda, num_warps=warps, num_stages=3, launch_pdl=x.is_cuda,
    )  # fmt: skip
    return out


def matvec_torch(x: Tensor, weight: Tensor, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """As matvec_triton."""
    out = torch.nn.functional.linear(x, weight, bias)
    if not gated:
        return out
    gate, up = out.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
