"""Attention over the paged cache of one layer, [2, blocks, kv_heads, block_size, head_dim].

o = softmax(q k^T * scale) v       over the keys at positions <= the query's
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def _gather(flat: Tensor, rows: Tensor, sequences: int, kv_heads: int, dim: int) -> Tensor:
    """[sequences, kv_heads, keys, head_dim] from cache blocks viewed as [blocks * kv_heads, block_size * head_dim]."""
    return flat.index_select(0, rows).view(sequences, kv_heads, -1, dim)


def decode_attention(q: Tensor, kv_cache: Tensor, block_rows: Tensor, mask: Tensor, scale: float) -> Tensor:
    """One query a sequence. q: [sequences, heads, head_dim]; returns the same shape.

    block_rows: [sequences * kv_heads * table_length] int64, rows of the cache viewed as [blocks * kv_heads, ...], ordered
    by sequence, kv head, position. mask: [sequences, 1, 1, table_length * block_size] bool, true where a key is attended.
    The query heads that share a kv head stand as several queries of one head, so nothing is expanded.
    """
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    flat = kv_cache.view(2, -1, block_size * dim)
    keys = _gather(flat[0], block_rows, count, kv_heads, dim)
    values = _gather(flat[1], block_rows, count, kv_heads, dim)
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(count, heads, dim)


def prefill_attention(q: Tensor, kv_cache: Tensor, block_table: Tensor, context: int, scale: float) -> Tensor:
    """The last `len(q)` positions of one sequence of `context` tokens. q: [queries, heads, head_dim].

    block_table: [ceil(context / block_size)] int64. Returns [queries, heads, head_dim].
    """
    _, _, kv_heads, block_size, dim = kv_cache.shape
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
