"""The plain cache write against its twin, with keys and values as transformers' models hand them over."""

from __future__ import annotations

import pytest
import torch

from kernels.cache_write import write_cache_torch, write_cache_triton
from kernels.rope import CacheSlots

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []


@pytest.mark.parametrize(("kv_heads", "dim"), [(2, 8), (3, 24), (1, 64)])
@pytest.mark.parametrize("heads_first", [False, True])
def test_write_cache(kv_heads: int, dim: int, heads_first: bool, dtype: torch.dtype, device: str) -> None:
    block_size, slots = 4, torch.tensor([9, 4, 15, 23, 6], device=device)
    shape = (kv_heads, 5, dim) if heads_first else (5, kv_heads, dim)
    keys, values = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    if heads_first:
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    caches = [torch.full((2, 6, kv_heads, block_size, dim), 3.0, device=device).to(dtype) for _ in range(2)]
    write_cache_torch(keys, values, caches[0], CacheSlots(slots, 6, kv_heads, block_size))
    write_cache_triton(keys, values, caches[1], CacheSlots(slots, 6, kv_heads, block_size))
    assert torch.equal(caches[0], caches[1])
    for token, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, block_size)
        assert torch.equal(caches[0][0, block, :, offset], keys[token])
        assert torch.equal(caches[0][1, block, :, offset], values[token])
    assert (caches[0] == 3.0).sum() == caches[0].numel() - 2 * keys.numel()
