"""The write of keys and values, as they are, into the paged cache of one layer.

That is [2, blocks, kv_heads, block_size, head_dim], keys first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.rope import CacheSlots


@triton.jit
def _write_cache_kernel(
    keys, values, cache, slots, key_token, key_head, value_token, value_head, value_offset,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    inside = (head < KV_HEADS) & (column < DIM)
    slot = tl.load(slots + token)
    row = ((slot // BLOCK_SIZE) * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    target = cache + row * DIM + column
    tl.store(target, tl.load(keys + token * key_token + head * key_head + column, mask=inside), mask=inside)
    value = tl.load(values + token * value_token + head * value_head + column, mask=inside)
    tl.store(target + value_offset, value, mask=inside)


def write_cache_triton(keys: Tensor, values: Tensor, kv_cache: Tensor, slots: CacheSlots) -> None:
    """As write_cache."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    _write_cache_kernel[(keys.shape[0],)](
        keys, values, kv_cache, slots.slots, *keys.stride()[:2], *values.stride()[:2], kv_cache.stride(0),
        kv_heads, dim, block_size, triton.next_power_of_2(kv_heads), triton.next_power_of_2(dim), keys.is_cuda,
        num_warps=4, launch_pdl=keys.is_cuda,
    )  # fmt: skip


def write_cache_torch(keys: Tensor, values: Tensor, kv_cache: Tensor, slots: CacheSlots) -> None:
    """As write_cache."""
    dim = kv_cache.shape[-1]
    both = keys.new_empty(keys.shape[0], 2, *keys.shape[1:])
    both[:, 0], both[:, 1] = keys, values
    kv_cache.view(-1, dim).index_copy_(0, slots.rows, both.view(-1, dim))


def write_cache(keys: Tensor, values: Tensor, kv_cache: Tensor, slots: CacheSlots) -> None:
    """keys, values: [tokens, kv_heads, head_dim], of any strides but for the last, which is 1."""
    run = write_cache_triton if keys.is_cuda else write_cache_torch
    run(keys, values, kv_cache, slots)
