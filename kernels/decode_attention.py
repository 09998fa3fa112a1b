"""Attention of one query a sequence over the paged cache of one layer, [2, blocks, kv_heads, block_size, head_dim].

    o = softmax(q k^T * scale) v

On the GPU the query heads that share a kv head are the rows of one tensor-core tile (grouped-query packing), and long
contexts are split over programs whose partial softmaxes a second kernel merges by their log-sum-exp (Dao et al. 2023,
Flash-Decoding). Where neighbouring sequences share leading blocks, a further kernel reads those once for a whole tile of
sequences and the rest is computed as usual (Juravsky et al. 2024, Hydragen, arXiv:2402.05099). The kernels of a decode
step are launched as programmatic dependents (PDL): each starts while the one before drains and waits for its results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_PROGRAMS = 264
"""Programs that fill a GPU of 132 multiprocessors twice."""
_SHARED_ROWS = 128
"""Query rows of a tile that reads shared blocks once."""
_SHARED_SPLITS = 4


def sequences_per_tile(heads: int, kv_heads: int) -> int:
    """Sequences whose shared leading blocks are read once."""
    return _SHARED_ROWS // triton.next_power_of_2(heads // kv_heads)


@dataclass
class DecodeContext:
    """Which keys the queries see. slots: [sequences] int64 rows of block_tables [slots, table_length] int32 and of
    lengths [slots] int64, tokens in the cache with the query's own. max_length bounds the lengths: what the CPU gathers and
    what the GPU plans its splits for. shared_blocks: [tiles] int32, leading blocks that all sequences of a tile of
    `sequences_per_tile` have in common, or None: a hint, which changes no result."""

    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    max_length: int
    kv_heads: int
    block_size: int
    shared_blocks: Tensor | None = None

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the cache viewed as [blocks * kv_heads, ...], by sequence, kv head, position."""
        tables = self.block_tables[self.slots, : -(-self.max_length // self.block_size)].long()
        heads = torch.arange(self.kv_heads, device=tables.device)
        return (tables[:, None, :] * self.kv_heads + heads[None, :, None]).flatten()

    @cached_property
    def mask(self) -> Tensor:
        """[sequences, 1, 1, keys] bool, true where a key is attended."""
        keys = torch.arange(-(-self.max_length // self.block_size) * self.block_size, device=self.slots.device)
        return (keys < self.lengths[self.slots][:, None])[:, None, None, :]


@triton.jit
def _attend_block(queries, cache, value_offset, block_row, length, start, peak, total, acc, scale,
                  DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """One block of keys for a tile of queries: the online softmax's step. Keys from `length` on are left out."""
    key = tl.arange(0, BLOCK_SIZE)
    column = tl.arange(0, WIDE)
    source = cache + block_row * (BLOCK_SIZE * DIM) + key[:, None] * DIM + column[None, :]
    inside = (start + key < length)[:, None] & (column < DIM)[None, :]
    keys = tl.load(source, mask=inside, other=0.0)
    values = tl.load(source + value_offset, mask=inside, other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((start + key < length)[None, :], scores, -1e30)
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new_peak, total, acc


@triton.jit
def _decode_kernel(
    q, cache, tables, lengths, slots, shared, out, partial, scale, table_stride, value_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, SPLITS: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot = tl.load(slots + sequence)
    length = tl.load(lengths + slot).to(tl.int32)
    table = tables + slot * table_stride
    first = 0
    if TILE > 0:
        first = tl.load(shared + sequence // TILE)
    blocks = tl.cdiv(length, BLOCK_SIZE) - first
    share = tl.cdiv(blocks, SPLITS)
    begin = first + split * share
    end = tl.minimum(begin + share, first + blocks)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    heads = kv_head * GROUP + row
    q_mask = (row < GROUP)[:, None] & (column < DIM)[None, :]
    queries = tl.load(q + (sequence * HEADS + heads)[:, None] * DIM + column[None, :], mask=q_mask, other=0.0)
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    for index in range(begin, end):
        block_row = tl.load(table + index).to(tl.int64) * KV_HEADS + kv_head
        peak, total, acc = _attend_block(
            queries, cache, value_offset, block_row, length, index * BLOCK_SIZE, peak, total, acc, scale,
            DIM, BLOCK_SIZE, WIDE,
        )  # fmt: skip
    if WAYS == 1:
        target = out + (sequence * HEADS + heads)[:, None] * DIM + column[None, :]
        tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=q_mask)
    else:
        # a way's row: DIM unnormalised sums, then their maximum and total
        base = partial + ((sequence * HEADS + heads) * WAYS + split) * (DIM + 2)
        tl.store(base[:, None] + column[None, :], acc, mask=q_mask)
        tl.store(base + DIM, peak, mask=row < GROUP)
        tl.store(base + DIM + 1, total, mask=row < GROUP)


@triton.jit
def _shared_kernel(
    q, cache, tables, slots, shared, partial, scale, table_stride, value_offset, count,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, SPLITS: tl.constexpr, FIRST_WAY: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot = tl.load(slots + tile * TILE)
    table = tables + slot * table_stride
    blocks = tl.load(shared + tile)
    share = tl.cdiv(blocks, SPLITS)
    begin = split * share
    end = tl.minimum(begin + share, blocks)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    sequence = tile * TILE + row // (ROWS // TILE)
    member = row % (ROWS // TILE)
    heads = kv_head * GROUP + member
    valid = (member < GROUP) & (sequence < count)
    q_mask = valid[:, None] & (column < DIM)[None, :]
    queries = tl.load(q + (sequence * HEADS + heads)[:, None] * DIM + column[None, :], mask=q_mask, other=0.0)
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    for index in range(begin, end):
        block_row = tl.load(table + index).to(tl.int64) * KV_HEADS + kv_head
        peak, total, acc = _attend_block(
            queries, cache, value_offset, block_row, blocks * BLOCK_SIZE, index * BLOCK_SIZE, peak, total, acc, scale,
            DIM, BLOCK_SIZE, WIDE,
        )  # fmt: skip
    base = partial + ((sequence * HEADS + heads) * WAYS + FIRST_WAY + split) * (DIM + 2)
    tl.store(base[:, None] + column[None, :], acc, mask=q_mask)
    tl.store(base + DIM, peak, mask=valid)
    tl.store(base + DIM + 1, total, mask=valid)


@triton.jit
def _merge_kernel(
    partial, out,
    DIM: tl.constexpr, WIDE: tl.constexpr, WAYS: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    way = tl.arange(0, PADDED)
    column = tl.arange(0, WIDE)
    base = partial + (row * WAYS + way) * (DIM + 2)
    peaks = tl.load(base + DIM, mask=way < WAYS, other=-1e30)
    totals = tl.load(base + DIM + 1, mask=way < WAYS, other=0.0)
    mask = (way < WAYS)[:, None] & (column < DIM)[None, :]
    sums = tl.load(base[:, None] + column[None, :], mask=mask, other=0.0)
    shrink = tl.exp2(peaks - tl.max(peaks, 0))
    result = tl.sum(sums * shrink[:, None], 0) / tl.sum(totals * shrink, 0)
    tl.store(out + row * DIM + column, result.to(out.dtype.element_ty), mask=column < DIM)


def num_splits(sequences: int, kv_heads: int, max_blocks: int) -> int:
    """How many programs share a sequence: enough to fill the GPU, each with blocks to do."""
    return max(1, min(_PROGRAMS // max(1, sequences * kv_heads), max_blocks, 16))


def decode_attention_triton(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float, out: Tensor) -> Tensor:
    """As decode_attention. block_size is 16 or more."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    shared, slots, tables = context.shared_blocks, context.slots, context.block_tables
    splits = num_splits(count, kv_heads, triton.cdiv(context.max_length, block_size))
    ways = splits + (0 if shared is None else _SHARED_SPLITS)
    partial = q.new_empty((count * heads, ways, dim + 2) if ways > 1 else (1,), dtype=torch.float32)
    group, wide = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    tile = 0 if shared is None else sequences_per_tile(heads, kv_heads)
    log2_scale = scale * 1.4426950408889634
    stages = 3 if q.element_size() == 2 else 1
    strides = (tables.stride(0), kv_cache.stride(0))
    if shared is not None:
        _shared_kernel[(triton.cdiv(count, tile), kv_heads, _SHARED_SPLITS)](
            q, kv_cache, tables, slots, shared, partial, log2_scale, *strides, count,
            heads, kv_heads, dim, block_size, _SHARED_ROWS, wide, _SHARED_SPLITS, splits, ways, tile,
            q.is_cuda, num_warps=8, num_stages=stages, launch_pdl=q.is_cuda,
        )  # fmt: skip
    _decode_kernel[(count, kv_heads, splits)](
        q, kv_cache, tables, context.lengths, slots, slots if shared is None else shared, out, partial, log2_scale,
        *strides, heads, kv_heads, dim, block_size, max(16, triton.next_power_of_2(group)), wide, splits, ways, tile,
        q.is_cuda, num_warps=4, num_stages=stages, launch_pdl=q.is_cuda,
    )  # fmt: skip
    if ways > 1:
        _merge_kernel[(count * heads,)](
            partial, out, dim, wide, ways, triton.next_power_of_2(ways), q.is_cuda, num_warps=2, launch_pdl=q.is_cuda
        )
    return out


def decode_attention_torch(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float, out: Tensor) -> Tensor:
    """As decode_attention. The query heads that share a kv head stand as several queries of one head, so nothing is
    expanded."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    flat = kv_cache.view(2, -1, block_size * dim)
    keys, values = (half.index_select(0, context.rows).view(count, kv_heads, -1, dim) for half in flat)
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=context.mask, scale=scale)
    return out.copy_(attended.reshape(count, heads, dim))


def decode_attention(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float, out: Tensor) -> Tensor:
    """One query a sequence. q, out: [sequences, heads, head_dim], contiguous on the GPU; writes and returns `out`."""
    run = decode_attention_triton if q.is_cuda else decode_attention_torch
    return run(q, kv_cache, context, scale, out)
