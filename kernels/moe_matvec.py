"""A mixture of experts for one token or a few, bound by reading the chosen experts' weights once.

Two launches: gate, up and activation for each pair of token and expert, then the weighted sum of the experts' outputs. As in
`kernels.matvec`, each program owns a few rows of a weight matrix and streams them through.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.moe_experts import Experts, gated
from kernels.moe_routing import Routes

GATE_UP = (1, 1024, 2)
DOWN = (4, 1024, 4)
"""(rows of a program, columns at a time, warps): 3,890 and 3,407 GB/s for one token and 8 experts of 2,048 x 768 on an
H200."""


@triton.jit
def _gate_up_kernel(
    x, weight, bias, ids, out, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    CLAMPED: tl.constexpr, HAS_BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(1)
    expert = tl.load(ids + pair).to(tl.int64)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < INNER
    column = tl.arange(0, CHUNK)
    source = weight + expert * (2 * INNER * HIDDEN) + row[:, None] * HIDDEN + column[None, :]
    gate = tl.zeros([TILE, CHUNK], tl.float32)
    up = tl.zeros([TILE, CHUNK], tl.float32)
    for start in tl.static_range(0, HIDDEN, CHUNK):
        within = start + column < HIDDEN
        valid = inside[:, None] & within[None, :]
        values = tl.load(x + (pair // TOP_K) * HIDDEN + start + column, mask=within, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(source + start, mask=valid, other=0.0).to(tl.float32) * values
        up += tl.load(source + INNER * HIDDEN + start, mask=valid, other=0.0).to(tl.float32) * values
    gate_sum, up_sum = tl.sum(gate, 1), tl.sum(up, 1)
    if HAS_BIAS:
        gate_sum += tl.load(bias + expert * (2 * INNER) + row, mask=inside, other=0.0).to(tl.float32)
        up_sum += tl.load(bias + expert * (2 * INNER) + INNER + row, mask=inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = out.dtype.element_ty
    tl.store(out + pair * INNER + row, gated(gate_sum, up_sum, kind, alpha, limit, CLAMPED).to(kind), mask=inside)


@triton.jit
def _down_kernel(
    x, weight, bias, ids, shares, out,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    HAS_BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(1)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < HIDDEN
    column = tl.arange(0, CHUNK)
    acc = tl.zeros([TILE, CHUNK], tl.float32)
    added = tl.zeros([TILE], tl.float32)
    for slot in tl.static_range(TOP_K):
        pair = token * TOP_K + slot
        expert = tl.load(ids + pair).to(tl.int64)
        share = tl.load(shares + pair)
        source = weight + expert * (HIDDEN * INNER) + row[:, None] * INNER + column[None, :]
        for start in tl.static_range(0, INNER, CHUNK):
            within = start + column < INNER
            values = tl.load(x + pair * INNER + start + column, mask=within, other=0.0).to(tl.float32) * share
            valid = inside[:, None] & within[None, :]
            acc += tl.load(source + start, mask=valid, other=0.0).to(tl.float32) * values[None, :]
        if HAS_BIAS:
            added += share * tl.load(bias + expert * HIDDEN + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + row, (tl.sum(acc, 1) + added).to(out.dtype.element_ty), mask=inside)


def experts_matvec_triton(
    x: Tensor,
    routes: Routes,
    experts: Experts,
    gate_up: tuple[int, int, int] = GATE_UP,
    down: tuple[int, int, int] = DOWN,
) -> Tensor:
    """As `kernels.moe.mix_experts`."""
    (tokens, hidden), (_, top_k), inner, cuda = x.shape, routes.ids.shape, experts.inner, x.is_cuda
    act, out = x.new_empty(tokens * top_k, inner), x.new_empty(tokens, hidden)
    tile, chunk, warps = gate_up
    _gate_up_kernel[(triton.cdiv(inner, tile), tokens * top_k)](
        x, experts.gate_up, x if experts.gate_up_bias is None else experts.gate_up_bias, routes.ids, act,
        experts.alpha, experts.limit, hidden, inner, top_k, tile, min(chunk, triton.next_power_of_2(hidden)),
        experts.limit > 0, experts.gate_up_bias is not None, cuda, num_warps=warps, launch_pdl=cuda,
    )  # fmt: skip
    tile, chunk, warps = down
    _down_kernel[(triton.cdiv(hidden, tile), tokens)](
        act, experts.down, x if experts.down_bias is None else experts.down_bias, routes.ids, routes.weights, out,
        hidden, inner, top_k, tile, min(chunk, triton.next_power_of_2(inner)), experts.down_bias is not None, cuda,
        num_warps=warps, launch_pdl=cuda,
    )  # fmt: skip
    return out
