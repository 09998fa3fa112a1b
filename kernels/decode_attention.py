"""Attention of one query a sequence over the paged cache of one layer, [2, blocks, kv_heads, block_size, head_dim].

    o = softmax(q k^T * scale) v

On the GPU the query heads that share a kv head are the rows of one tensor-core tile (grouped-query packing), and long
contexts are split over programs whose partial softmaxes a second kernel merges by their log-sum-exp (Dao et al. 2023, Flash-Decoding).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_TILE = 64
_PROGRAMS = 264
"""Programs that fill a GPU of 132 multiprocessors twice."""


@dataclass
class DecodeContext:
    """Which keys the queries see. slots: [sequences] int64 rows of block_tables [slots, table_length] int32 and of
    lengths [slots] int64, tokens in the cache with the query's own. max_length bounds the lengths: what the CPU gathers and
    what the GPU plans its splits for."""

    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    max_length: int
    kv_heads: int
    block_size: int

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
def _decode_kernel(
    q, cache, tables, lengths, slots, out, partial, scale, table_stride, value_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(slots + sequence)
    length = tl.load(lengths + slot).to(tl.int32)
    table = tables + slot * table_stride
    tiles = tl.cdiv(length, TILE)
    share = tl.cdiv(tiles, SPLITS)
    begin = split * share * TILE
    end = tl.minimum(begin + share * TILE, length)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    heads = kv_head * GROUP + row
    q_mask = (row < GROUP)[:, None] & (column < DIM)[None, :]
    queries = tl.load(q + (sequence * HEADS + heads)[:, None] * DIM + column[None, :], mask=q_mask, other=0.0)
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        valid = key < end
        block = tl.load(table + key // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
        offset = ((block * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE)[:, None] * DIM + column[None, :]
        load_mask = valid[:, None] & (column < DIM)[None, :]
        keys = tl.load(cache + offset, mask=load_mask, other=0.0)
        values = tl.load(cache + value_offset + offset, mask=load_mask, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, -1e30)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - new_peak[:, None])
        weights = tl.where(valid[None, :], weights, 0.0)
        shrink = tl.exp(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        peak = new_peak
    if SPLITS == 1:
        result = acc / total[:, None]
        target = out + (sequence * HEADS + heads)[:, None] * DIM + column[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=q_mask)
    else:
        # a split's row: DIM unnormalised sums, then their maximum and total
        base = partial + ((sequence * HEADS + heads) * SPLITS + split) * (DIM + 2)
        tl.store(base[:, None] + column[None, :], acc, mask=q_mask)
        tl.store(base + DIM, peak, mask=row < GROUP)
        tl.store(base + DIM + 1, total, mask=row < GROUP)


@triton.jit
def _merge_kernel(partial, out, DIM: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr, WAYS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    way = tl.arange(0, WAYS)
    column = tl.arange(0, WIDE)
    base = partial + (row * SPLITS + way) * (DIM + 2)
    peaks = tl.load(base + DIM, mask=way < SPLITS, other=-1e30)
    totals = tl.load(base + DIM + 1, mask=way < SPLITS, other=0.0)
    mask = (way < SPLITS)[:, None] & (column < DIM)[None, :]
    sums = tl.load(base[:, None] + column[None, :], mask=mask, other=0.0)
    shrink = tl.exp(peaks - tl.max(peaks, 0))
    result = tl.sum(sums * shrink[:, None], 0) / tl.sum(totals * shrink, 0)
    tl.store(out + row * DIM + column, result.to(out.dtype.element_ty), mask=column < DIM)


def num_splits(sequences: int, kv_heads: int, max_length: int) -> int:
    """How many programs share a sequence: enough to fill the GPU, each with a tile to do."""
    wanted = _PROGRAMS // max(1, sequences * kv_heads)
    return max(1, min(wanted, triton.cdiv(max_length, _TILE), 32))


def decode_attention_triton(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float) -> Tensor:
    """As decode_attention."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    out = torch.empty_like(q)
    splits = num_splits(count, kv_heads, context.max_length)
    partial = q.new_empty((count * heads, splits, dim + 2) if splits > 1 else (1,), dtype=torch.float32)
    group, wide = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    _decode_kernel[(count, kv_heads, splits)](
        q, kv_cache, context.block_tables, context.lengths, context.slots, out, partial, scale,
        context.block_tables.stride(0), kv_cache.stride(0),
        heads, kv_heads, dim, block_size, group, max(16, triton.next_power_of_2(group)), wide, _TILE, splits,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(count * heads,)](partial, out, dim, wide, splits, triton.next_power_of_2(splits), num_warps=4)
    return out


def decode_attention_torch(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float) -> Tensor:
    """As decode_attention. The query heads that share a kv head stand as several queries of one head, so nothing is
    expanded."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    flat = kv_cache.view(2, -1, block_size * dim)
    keys, values = (half.index_select(0, context.rows).view(count, kv_heads, -1, dim) for half in flat)
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=context.mask, scale=scale)
    return out.reshape(count, heads, dim)


def decode_attention(q: Tensor, kv_cache: Tensor, context: DecodeContext, scale: float) -> Tensor:
    """One query a sequence. q: [sequences, heads, head_dim], contiguous on the GPU; returns the same shape."""
    run = decode_attention_triton if q.is_cuda else decode_attention_torch
    return run(q, kv_cache, context, scale)
