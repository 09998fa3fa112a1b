"""Rotary position embedding with optional norms of q and k, and the write of k and v into the paged cache.

Rotate-half layout: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of a head (Su et al. 2021,
arXiv:2104.09864). The cache of a layer is [2, blocks, kv_heads, block_size, head_dim], keys first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.norm import rms_norm


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [tokens, heads, head_dim] by fp32 cos and sin [tokens, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_cache: Tensor,
    cache_rows: Tensor,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Returns rotated q [tokens, heads, head_dim]; writes rotated k, and v, to the cache.

    qkv: [tokens, (heads + 2 kv_heads) * head_dim]. cache_rows: [tokens * kv_heads] int64, the row of each token and
    kv head in the cache viewed as [blocks * kv_heads * block_size, head_dim]. q_norm, k_norm: [head_dim], RMSNorm weights.
    """
    kv_heads, dim = kv_cache.shape[2], kv_cache.shape[4]
    parts = qkv.view(qkv.shape[0], -1, dim)
    values = parts[:, heads + kv_heads :]
    if q_norm is None or k_norm is None:
        rotated = rope(parts[:, : heads + kv_heads], cos, sin)
        queries, keys = rotated[:, :heads], rotated[:, heads:]
    else:
        queries = rope(rms_norm(parts[:, :heads], q_norm, eps), cos, sin)
        keys = rope(rms_norm(parts[:, heads : heads + kv_heads], k_norm, eps), cos, sin)
    flat = kv_cache.view(2, -1, dim)
    flat[0].index_copy_(0, cache_rows, keys.reshape(-1, dim))
    flat[1].index_copy_(0, cache_rows, values.reshape(-1, dim))
    return queries
