"""A mixture of experts for many tokens: grouped products over tokens that are sorted by expert, or in a bucket for each.

Each program multiplies a tile of one expert's rows with a tile of its weights. The weights are the left operand, so that a
tensor core's 64 rows are filled by them and a tile of 16 tokens is not padded: with few tokens an expert, reading the weights
is all that counts, and they come by bulk copies. Every pair of token and expert writes its own row; a last kernel adds up a
token's rows in their order, so results do not depend on which program is first.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.moe_experts import Experts, gated
from kernels.moe_routing import Routes, Sorted, sort_by_expert


@dataclass(frozen=True, slots=True)
class Tile:
    """outputs: rows of a weight tile (twice that for gate and up together); depth: columns at a time. ahead: columns of the
    weights that are brought into L2 before the wait for the kernels before, a power of two."""

    outputs: int
    depth: int
    warps: int
    stages: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """rows: tokens of a tile."""

    rows: int
    gate_up: Tile
    down: Tile


PLANS = {
    16: Plan(16, Tile(64, 128, 4, 3), Tile(128, 128, 4, 3)),  # where not all experts are read, none is in advance
    32: Plan(32, Tile(64, 64, 4, 3, 256), Tile(256, 64, 8, 3, 256)),
    64: Plan(64, Tile(64, 64, 4, 3), Tile(128, 64, 8, 4)),
    128: Plan(128, Tile(128, 64, 8, 3), Tile(128, 64, 4, 3)),
}
"""By tokens of a tile, by measurement on an H200 with 128 experts of 2,048 x 768 and 8 choices a token: 16 reads weights at
4,528 and 4,300 GB/s for 64 tokens, 32 at 4,355 and 4,060 for 256, 64 at 4,215 and 3,903 for 512; 128 reaches 500 TFLOP/s
for 8,192."""


def plan_for(pairs: int, experts: int) -> Plan:
    """The smallest tile that holds nearly every expert's rows when `pairs` are spread evenly; the largest beyond that."""
    mean = pairs / experts
    return PLANS[16 if mean <= 8 else 32 if mean <= 20 else 64 if mean <= 64 else 128]


@triton.jit
def _prefetch(weight, row, end, columns, OUTPUTS: tl.constexpr, AHEAD: tl.constexpr):
    """Brings the first AHEAD columns of rows [row, row + OUTPUTS), which lie before `end`, into L2, 128 bytes a line."""
    LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
    rows = tl.minimum(row + tl.arange(0, OUTPUTS), end - 1).to(tl.int64)
    lines = weight + rows[:, None] * columns + (tl.arange(0, AHEAD // LINE) * LINE)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _gate_up_tile(
    x, weight_rows, bias, order, out, expert, first, begin, count, hidden, inner, alpha, limit,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr,
    CLAMPED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Rows [first + begin, first + count) of `order`, ROWS at most, of one expert."""
    output = tl.program_id(0) * OUTPUTS
    weight_row = expert * (2 * inner) + output
    row = begin + tl.arange(0, ROWS)
    inside = row < count
    token = tl.load(order + first + row, mask=inside, other=0) // TOP_K
    column = tl.arange(0, DEPTH)
    source = x + token[:, None].to(tl.int64) * hidden + column[None, :]
    gate = tl.zeros([OUTPUTS, ROWS], tl.float32)
    up = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, hidden, DEPTH):
        valid = inside[:, None]
        if not EVEN:
            valid = valid & (start + column < hidden)[None, :]
        values = tl.trans(tl.load(source + start, mask=valid, other=0.0))
        gate = tl.dot(weight_rows.load([weight_row, start]), values, gate, input_precision="ieee")
        up = tl.dot(weight_rows.load([weight_row + inner, start]), values, up, input_precision="ieee")
    index = output + tl.arange(0, OUTPUTS)
    if HAS_BIAS:
        biases = bias + expert * (2 * inner) + index
        gate += tl.load(biases, mask=index < inner, other=0.0).to(tl.float32)[:, None]
        up += tl.load(biases + inner, mask=index < inner, other=0.0).to(tl.float32)[:, None]
    kind: tl.constexpr = out.dtype.element_ty
    act = tl.trans(gated(gate, up, kind, alpha, limit, CLAMPED).to(kind))
    target = out + (first + row)[:, None].to(tl.int64) * inner + index[None, :]
    tl.store(target, act, mask=inside[:, None] & (index < inner)[None, :])


@triton.jit(do_not_specialize=["capacity"])
def _gate_up_kernel(
    x, weight_rows, weight, bias, order, tiles, out, hidden, inner, experts, capacity, alpha, limit,
    BUCKETS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    EVEN: tl.constexpr, CLAMPED: tl.constexpr, HAS_BIAS: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out: [rows of order, inner]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD > 0:
            # with buckets, or where each expert has one tile, this is what the program will read
            likely = tl.program_id(1) * (2 * inner) + tl.program_id(0) * OUTPUTS
            _prefetch(weight, likely, experts * 2 * inner, hidden, OUTPUTS, AHEAD)
            _prefetch(weight, likely + inner, experts * 2 * inner, hidden, OUTPUTS, AHEAD)
        tl.extra.cuda.gdc_wait()
    if BUCKETS:
        expert = tl.program_id(1)
        count = tl.load(tiles + expert)
        for begin in range(0, count, ROWS):  # seldom more than one round
            _gate_up_tile(
                x, weight_rows, bias, order, out, expert, expert * capacity, begin, count, hidden, inner, alpha, limit,
                TOP_K, ROWS, OUTPUTS, DEPTH, EVEN, CLAMPED, HAS_BIAS,
            )  # fmt: skip
    else:
        tile = tiles + tl.program_id(1) * 4
        count = tl.load(tile + 2)
        if count > 0:
            _gate_up_tile(
                x, weight_rows, bias, order, out, tl.load(tile), tl.load(tile + 1), 0, count, hidden, inner, alpha,
                limit, TOP_K, ROWS, OUTPUTS, DEPTH, EVEN, CLAMPED, HAS_BIAS,
            )  # fmt: skip


@triton.jit
def _down_tile(
    act_rows, weight_rows, bias, order, out, expert, first, begin, count, hidden, inner,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """As _gate_up_tile."""
    output = tl.program_id(0) * OUTPUTS
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, inner, DEPTH):
        # rows that are not this expert's may come along; nobody stores what they give
        values = tl.trans(act_rows.load([first + begin, start]))
        acc = tl.dot(weight_rows.load([expert * hidden + output, start]), values, acc, input_precision="ieee")
    index = output + tl.arange(0, OUTPUTS)
    if HAS_BIAS:
        acc += tl.load(bias + expert * hidden + index, mask=index < hidden, other=0.0).to(tl.float32)[:, None]
    row = begin + tl.arange(0, ROWS)
    pair = tl.load(order + first + row, mask=row < count, other=0)
    target = out + pair[:, None].to(tl.int64) * hidden + index[None, :]
    result = tl.trans(acc.to(out.dtype.element_ty))
    tl.store(target, result, mask=(row < count)[:, None] & (index < hidden)[None, :])


@triton.jit(do_not_specialize=["capacity"])
def _down_kernel(
    act_rows, weight_rows, weight, bias, order, tiles, out, hidden, inner, experts, capacity,
    BUCKETS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out: [pairs, hidden], by token."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD > 0:
            likely = tl.program_id(1) * hidden + tl.program_id(0) * OUTPUTS
            _prefetch(weight, likely, experts * hidden, inner, OUTPUTS, AHEAD)
        tl.extra.cuda.gdc_wait()
    if BUCKETS:
        expert = tl.program_id(1)
        count = tl.load(tiles + expert)
        for begin in range(0, count, ROWS):
            _down_tile(
                act_rows, weight_rows, bias, order, out, expert, expert * capacity, begin, count, hidden, inner, ROWS,
                OUTPUTS, DEPTH, HAS_BIAS,
            )  # fmt: skip
    else:
        tile = tiles + tl.program_id(1) * 4
        count = tl.load(tile + 2)
        if count > 0:
            _down_tile(
                act_rows, weight_rows, bias, order, out, tl.load(tile), tl.load(tile + 1), 0, count, hidden, inner,
                ROWS, OUTPUTS, DEPTH, HAS_BIAS,
            )  # fmt: skip


@triton.jit
def _combine_kernel(
    pairs, shares, out, hidden, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(TOP_K):
        pair = token * TOP_K + slot
        values = tl.load(pairs + pair * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
        total += values * tl.load(shares + pair)
    tl.store(out + token * hidden + column, total.to(out.dtype.element_ty), mask=column < hidden)


def _rows_of(matrix: Tensor, tile: tuple[int, int]) -> TensorDescriptor:
    """The rows of all experts' matrices, one below the other; what is past their ends comes as zeros."""
    return TensorDescriptor.from_tensor(matrix.view(-1, matrix.shape[-1]), list(tile))


def _ahead(tile: Tile, columns: int) -> int:
    return tile.ahead if tile.ahead <= columns else 0


def _stages(tile: Tile, x: Tensor) -> int:
    return tile.stages if x.element_size() == 2 else 1


def gate_up_triton(x: Tensor, top_k: int, by_expert: Sorted, experts: Experts, rows: int, tile: Tile) -> Tensor:
    """The gated inner values of every pair, in the order of `by_expert`: [rows of order, inner]. Where that is buckets,
    [experts, tokens], it has their counts in place of tiles, and rows behind a count are left as they are."""
    hidden, inner, cuda, bias = x.shape[1], experts.inner, x.is_cuda, experts.gate_up_bias
    out = x.new_empty(by_expert.order.numel(), inner)
    _gate_up_kernel[(triton.cdiv(inner, tile.outputs), len(by_expert.tiles))](
        x, _rows_of(experts.gate_up, (tile.outputs, tile.depth)), experts.gate_up, x if bias is None else bias,
        *by_expert, out, hidden, inner, experts.count, by_expert.order.shape[-1], experts.alpha, experts.limit,
        by_expert.order.ndim == 2, top_k, rows, tile.outputs, tile.depth, hidden % tile.depth == 0, experts.limit > 0,
        bias is not None, _ahead(tile, hidden), cuda,
        num_warps=tile.warps, num_stages=_stages(tile, x), launch_pdl=cuda,
    )  # fmt: skip
    return out


def down_triton(act: Tensor, pairs: int, by_expert: Sorted, experts: Experts, rows: int, tile: Tile) -> Tensor:
    """Every pair's output, in the order of tokens: [pairs, hidden]. act: as gate_up_triton returns it."""
    hidden, inner, cuda, bias = experts.down.shape[1], experts.inner, act.is_cuda, experts.down_bias
    out = act.new_empty(pairs, hidden)
    _down_kernel[(triton.cdiv(hidden, tile.outputs), len(by_expert.tiles))](
        _rows_of(act, (rows, tile.depth)), _rows_of(experts.down, (tile.outputs, tile.depth)), experts.down,
        act if bias is None else bias, *by_expert, out, hidden, inner, experts.count, by_expert.order.shape[-1],
        by_expert.order.ndim == 2, rows, tile.outputs, tile.depth, bias is not None, _ahead(tile, inner), cuda,
        num_warps=tile.warps, num_stages=_stages(tile, act), launch_pdl=cuda,
    )  # fmt: skip
    return out


def combine_triton(by_pair: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of each token's rows. by_pair: [tokens * top_k, hidden]; weights: [tokens, top_k]."""
    (tokens, top_k), hidden, cuda = weights.shape, by_pair.shape[1], by_pair.is_cuda
    out = by_pair.new_empty(tokens, hidden)
    block = min(1024, triton.next_power_of_2(hidden))
    _combine_kernel[(tokens, triton.cdiv(hidden, block))](
        by_pair, weights, out, hidden, top_k, block, cuda, num_warps=4, launch_pdl=cuda
    )
    return out


def experts_gemm_triton(x: Tensor, routes: Routes, experts: Experts, plan: Plan | None = None) -> Tensor:
    """As `kernels.moe.mix_experts`. Rows of x and of the weights begin at multiples of 16 bytes."""
    plan = plan or plan_for(routes.ids.numel(), experts.count)
    buckets = routes.buckets
    by_expert = sort_by_expert(routes, plan.rows) if buckets is None else Sorted(buckets, routes.counts)
    act = gate_up_triton(x, routes.ids.shape[1], by_expert, experts, plan.rows, plan.gate_up)
    by_pair = down_triton(act, routes.ids.numel(), by_expert, experts, plan.rows, plan.down)
    return combine_triton(by_pair, routes.weights)
