"""Causal attention of many queries a sequence over the paged cache of one layer.

The keys of a chunk's queries are all in the cache: what earlier chunks wrote, what a cached prefix holds and what this step
wrote just before. On the GPU it is FlashAttention (Dao 2023, arXiv:2307.08691) with keys and values gathered by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention import AttentionOptions, alibi_torch, attend_torch, empty_softmax, soft_cap

_QUERIES = 128
"""Queries of a tile: with bulk copies 128 and 4 warps reach 469 TFLOP/s at 4,096 tokens on an H200; gathered loads, 398."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, start + count) of q: the last `count` positions of a sequence of `context` tokens in `slot`."""

    slot: int
    start: int
    count: int
    context: int


@dataclass
class PrefillContext:
    """spans: host-side; block_tables: [slots, table_length] int32; tiles: [tiles, 4] int32 (slot, first query's row in q,
    its position, queries), which only the GPU needs."""

    spans: list[Span]
    block_tables: Tensor
    tiles: Tensor | None = None


def plan_tiles(spans: list[Span], queries: int = _QUERIES) -> np.ndarray:
    """[tiles, 4] int32 for spans: tiles of up to `queries` queries, those with the longest contexts first."""
    tiles = [
        (span.slot, span.start + first, span.context - span.count + first, min(queries, span.count - first))
        for span in spans
        for first in range(0, span.count, queries)
    ]
    return np.asarray(sorted(tiles, key=lambda tile: -tile[2]), dtype=np.int32)


@triton.jit
def _attend_blocks(
    queries, key_rows, value_rows, table, kv_head, q_positions, begin, end, peak, total, acc, scale, slope,
    MASKED: tl.constexpr, CAP_RATE: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the blocks [begin, end) of a block table. Not MASKED: every query sees them whole."""
    for index in range(begin, end):
        block_row = (tl.load(table + index) * KV_HEADS + kv_head) * BLOCK_SIZE
        keys = key_rows.load([block_row, 0])
        scores = soft_cap(tl.dot(queries, tl.trans(keys), input_precision="ieee"), CAP_RATE)
        positions = (index * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE))[None, :]
        if ALIBI:
            scores += slope * (positions - q_positions[:, None]).to(tl.float32)
        if MASKED:
            # finite, so that a row which sees no key of a block stays finite: its sums count for nothing after the next key
            scores = tl.where(positions <= q_positions[:, None], scores * scale, -1e30)
            if WINDOW > 0:
                scores = tl.where(positions > q_positions[:, None] - WINDOW, scores, -1e30)
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - new_peak[:, None])
        else:
            new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        values = value_rows.load([block_row, 0])
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        peak = new_peak
    return peak, total, acc


@triton.jit
def _prefill_kernel(
    q, key_rows, value_rows, tables, tiles, slopes, sinks, out, scale, table_stride,
    SINKS: tl.constexpr, CAP_RATE: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(1) * 4
    head = tl.program_id(0)
    kv_head = head // (HEADS // KV_HEADS)
    slot = tl.load(tile).to(tl.int64)
    first = tl.load(tile + 1).to(tl.int64)
    position = tl.load(tile + 2)
    count = tl.load(tile + 3)
    table = tables + slot * table_stride
    row = tl.arange(0, QUERIES)
    column = tl.arange(0, WIDE)
    q_mask = (row < count)[:, None] & (column < DIM)[None, :]
    q_offset = ((first + row) * HEADS + head)[:, None] * DIM + column[None, :]
    queries = tl.load(q + q_offset, mask=q_mask, other=0.0)
    peak, total = empty_softmax(sinks, row * 0 + head, row < count, True, SINKS, QUERIES)
    acc = tl.zeros([QUERIES, WIDE], tl.float32)
    slope = 0.0
    if ALIBI:
        # in the units of what `scale` multiplies
        slope = tl.load(slopes + head) * 1.4426950408889634 / scale
    # blocks that every query sees whole need no mask; those on the diagonal follow, those on the window's edge come before
    whole = 0
    diagonal = (position + 1) // BLOCK_SIZE
    if WINDOW > 0:
        oldest = tl.maximum(position + 1 - WINDOW, 0) // BLOCK_SIZE
        whole = tl.minimum(tl.cdiv(tl.maximum(position + count - WINDOW, 0), BLOCK_SIZE), diagonal)
        peak, total, acc = _attend_blocks(
            queries, key_rows, value_rows, table, kv_head, position + row, oldest, whole, peak, total, acc, scale,
            slope, True, CAP_RATE, WINDOW, ALIBI, KV_HEADS, BLOCK_SIZE,
        )  # fmt: skip
    peak, total, acc = _attend_blocks(
        queries, key_rows, value_rows, table, kv_head, position + row, whole, diagonal, peak, total, acc, scale,
        slope, False, CAP_RATE, WINDOW, ALIBI, KV_HEADS, BLOCK_SIZE,
    )  # fmt: skip
    peak, total, acc = _attend_blocks(
        queries, key_rows, value_rows, table, kv_head, position + row, diagonal, tl.cdiv(position + count, BLOCK_SIZE),
        peak, total, acc, scale, slope, True, CAP_RATE, WINDOW, ALIBI, KV_HEADS, BLOCK_SIZE,
    )  # fmt: skip
    tl.store(out + q_offset, (acc / total[:, None]).to(out.dtype.element_ty), mask=q_mask)


def prefill_attention_triton(
    q: Tensor, kv_cache: Tensor, context: PrefillContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """As prefill_attention. block_size is 16 or more."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    heads = q.shape[1]
    tiles = context.tiles
    assert tiles is not None
    wide = max(16, triton.next_power_of_2(dim))
    # bulk copies of whole blocks; columns past head_dim come as zeros
    rows = [TensorDescriptor.from_tensor(half.view(-1, dim), [block_size, wide]) for half in kv_cache]
    _prefill_kernel[(heads, len(tiles))](
        q, *rows, context.block_tables, tiles, q if options.slopes is None else options.slopes,
        q if options.sinks is None else options.sinks, out, options.log2_scale, context.block_tables.stride(0),
        options.sinks is not None, options.cap_rate, options.window, options.slopes is not None, heads, kv_heads,
        dim, block_size, wide, _QUERIES,
        num_warps=4 if wide <= 128 else 8,  # with four, a thread of heads of 256 spills 5.8 KB of registers
        num_stages=2 if q.element_size() == 2 else 1,
    )  # fmt: skip
    return out


def _span_mask(span: Span, first: int, options: AttentionOptions, device: torch.device) -> Tensor:
    """[queries, keys] bool: which keys, from position `first` on, the queries of `span` see."""
    queries = torch.arange(span.context - span.count, span.context, device=device)[:, None]
    keys = torch.arange(first, span.context, device=device)
    seen = keys <= queries
    return seen & (keys > queries - options.window) if options.window else seen


def _one_sequence(q: Tensor, kv_cache: Tensor, block_table: Tensor, span: Span, options: AttentionOptions) -> Tensor:
    _, _, kv_heads, block_size, dim = kv_cache.shape
    start = span.context - span.count
    first = options.first_key(start) // block_size * block_size
    blocks = kv_cache.index_select(1, block_table[first // block_size : -(-span.context // block_size)])
    keys, values = blocks.transpose(1, 2).reshape(2, kv_heads, -1, dim)[:, :, : span.context - first].unbind(0)
    group = q.shape[1] // kv_heads
    if group > 1:
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    causal = start == 0 and options.first_key(span.context - 1) == 0 and options.slopes is None
    mask = None if causal else _span_mask(span, first, options, q.device)
    bias = None
    if options.slopes is not None:
        positions = torch.arange(first, span.context, device=q.device)
        bias = alibi_torch(positions - torch.arange(start, span.context, device=q.device)[:, None], options.slopes)
    sinks = None if options.sinks is None else options.sinks.view(-1, 1, 1)
    out = attend_torch(q.transpose(0, 1)[None], keys[None], values[None], mask, options, bias, sinks)
    return out[0].transpose(0, 1)


def prefill_attention_torch(
    q: Tensor, kv_cache: Tensor, context: PrefillContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """As prefill_attention."""
    for span in context.spans:
        rows = slice(span.start, span.start + span.count)
        out[rows] = _one_sequence(q[rows], kv_cache, context.block_tables[span.slot], span, options)
    return out


def prefill_attention(
    q: Tensor, kv_cache: Tensor, context: PrefillContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """Queries of several sequences, packed. q, out: [tokens, heads, head_dim], contiguous on the GPU; writes and returns
    `out`."""
    run = prefill_attention_triton if q.is_cuda else prefill_attention_torch
    return run(q, kv_cache, context, options, out)
