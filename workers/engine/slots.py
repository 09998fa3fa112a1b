"""The running requests' state on the device: a slot each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.decode_attention import DecodeContext
from kernels.rope import CacheSlots
from workers.engine.plan import BlockUpdate
from workers.engine.upload import upload


class Slots:
    """Block tables, lengths (tokens in the cache) and last sampled tokens by slot. The last slot is a dummy for padding: its
    table points at the null block."""

    def __init__(self, count: int, max_model_len: int, kv_cache: Tensor) -> None:
        self.device = kv_cache.device
        self.blocks, self.kv_heads, self.block_size = kv_cache.shape[2:5]
        self.dummy = count
        table_length = -(-max_model_len // self.block_size)
        self.block_tables = torch.zeros(count + 1, table_length, dtype=torch.int32, device=self.device)
        self.lengths = torch.zeros(count + 1, dtype=torch.int64, device=self.device)
        self.last_tokens = torch.zeros(count + 1, dtype=torch.int64, device=self.device)

    def update(self, updates: list[BlockUpdate]) -> None:
        """Write new block table entries, in one copy."""
        if not updates:
            return
        counts = [len(update.blocks) for update in updates]
        slots = np.repeat([update.slot for update in updates], counts)
        columns = np.concatenate([np.arange(u.index, u.index + len(u.blocks)) for u in updates])
        blocks = np.concatenate([np.asarray(u.blocks, dtype=np.int64) for u in updates])
        packed = upload(np.stack([slots, columns, blocks]), self.device)
        self.block_tables[packed[0], packed[1]] = packed[2].to(torch.int32)

    def advance(self, slots: Tensor) -> Tensor:
        """One more token for each of `slots`; returns its position."""
        positions = self.lengths[slots]
        self.lengths[slots] = positions + 1
        return positions

    def cache_slots(self, slots: Tensor, positions: Tensor) -> CacheSlots:
        """Where tokens at `positions` of the requests in `slots` are kept."""
        blocks = self.block_tables[slots, positions // self.block_size].long()
        slots_in_cache = blocks * self.block_size + positions % self.block_size
        return CacheSlots(slots_in_cache, self.blocks, self.kv_heads, self.block_size)

    def decode_context(self, slots: Tensor, max_length: int, shared: Tensor | None = None) -> DecodeContext:
        return DecodeContext(slots, self.block_tables, self.lengths, max_length, self.kv_heads, self.block_size, shared)
