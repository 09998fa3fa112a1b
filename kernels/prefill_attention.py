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
from torch.nn.functional import scaled_dot_product_attention
from triton.tools.tensor_descriptor import TensorDescriptor

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
def _prefill_kernel(
    q, key_rows, value_rows, tables, tiles, out, scale, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr,
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
    key = tl.arange(0, BLOCK_SIZE)
    q_mask = (row < count)[:, None] & (column < DIM)[None, :]
    q_offset = ((first + row) * HEADS + head)[:, None] * DIM + column[None, :]
    queries = tl.load(q + q_offset, mask=q_mask, other=0.0)
    peak = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, WIDE], tl.float32)
    whole = (position + 1) // BLOCK_SIZE
    # blocks that every query sees whole need no mask; those on the diagonal follow
    for index in range(whole):
        block_row = (tl.load(table + index) * KV_HEADS + kv_head) * BLOCK_SIZE
        keys = key_rows.load([block_row, 0])
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        values = value_rows.load([block_row, 0])
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        peak = new_peak
    for index in range(whole, tl.cdiv(position + count, BLOCK_SIZE)):
        block_row = (tl.load(table + index) * KV_HEADS + kv_head) * BLOCK_SIZE
        keys = key_rows.load([block_row, 0])
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((index * BLOCK_SIZE + key)[None, :] <= position + row[:, None], scores, -1e30)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        values = value_rows.load([block_row, 0])
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        peak = new_peak
    tl.store(out + q_offset, (acc / total[:, None]).to(out.dtype.element_ty), mask=q_mask)


def prefill_attention_triton(q: Tensor, kv_cache: Tensor, context: PrefillContext, scale: float, out: Tensor) -> Tensor:
    """As prefill_attention. block_size is 16 or more."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    heads = q.shape[1]
    tiles = context.tiles
    assert tiles is not None
    wide = max(16, triton.next_power_of_2(dim))
    # bulk copies of whole blocks; columns past head_dim come as zeros
    rows = [TensorDescriptor.from_tensor(half.view(-1, dim), [block_size, wide]) for half in kv_cache]
    _prefill_kernel[(heads, len(tiles))](
        q, *rows, context.block_tables, tiles, out, scale * 1.4426950408889634, context.block_tables.stride(0),
        heads, kv_heads, dim, block_size, wide, _QUERIES, num_warps=4, num_stages=2 if q.element_size() == 2 else 1,
    )  # fmt: skip
    return out


def _one_sequence(q: Tensor, kv_cache: Tensor, block_table: Tensor, context: int, scale: float) -> Tensor:
    _, _, kv_heads, _, dim = kv_cache.shape
    count, heads, _ = q.shape
    blocks = kv_cache.index_select(1, block_table)
    keys, values = blocks.transpose(1, 2).reshape(2, kv_heads, -1, dim)[:, :, :context].unbind(0)
    group = heads // kv_heads
    if group > 1:
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    causal = context == count
    mask = None if causal else torch.ones(count, context, dtype=torch.bool, device=q.device).tril(context - count)
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=causal, scale=scale
    )
    return out[0].transpose(0, 1)


def prefill_attention_torch(q: Tensor, kv_cache: Tensor, context: PrefillContext, scale: float, out: Tensor) -> Tensor:
    """As prefill_attention."""
    block_size = kv_cache.shape[3]
    for span in context.spans:
        table = context.block_tables[span.slot, : -(-span.context // block_size)]
        rows = slice(span.start, span.start + span.count)
        out[rows] = _one_sequence(q[rows], kv_cache, table, span.context, scale)
    return out


def prefill_attention(q: Tensor, kv_cache: Tensor, context: PrefillContext, scale: float, out: Tensor) -> Tensor:
    """Queries of several sequences, packed. q, out: [tokens, heads, head_dim], contiguous on the GPU; writes and returns
    `out`."""
    run = prefill_attention_triton if q.is_cuda else prefill_attention_torch
    return run(q, kv_cache, context, scale, out)
