"""The running requests' state on the device: a slot each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernels.decode_attention import DecodeContext
from kernels.rope import CacheSlots
from workers.engine.plan import BlockUpdate
from workers.engine.upload import upload
from workers.model.batch import Batch


class Slots:
    """Block tables by group of layers and slot, and by slot lengths (tokens in the cache) and last sampled tokens. The last
    slot is a dummy for padding: its table points at the null block."""

    def __init__(self, count: int, max_model_len: int, kv_cache: Tensor, windows: tuple[int, ...] = (0,)) -> None:
        self.device = kv_cache.device
        self.blocks, self.kv_heads, self.block_size = kv_cache.shape[2:5]
        self.dummy, self.windows = count, windows
        table_length = -(-max_model_len // self.block_size)
        tables = torch.zeros(len(windows), count + 1, table_length, dtype=torch.int32, device=self.device)
        self.block_tables = list(tables)
        self._rows = tables.view(-1, table_length)
        self.lengths = torch.zeros(count + 1, dtype=torch.int64, device=self.device)
        self.last_tokens = torch.zeros(count + 1, dtype=torch.int64, device=self.device)

    def update(self, updates: list[BlockUpdate]) -> None:
        """Write new block table entries, in one copy."""
        if not updates:
            return
        counts = [len(update.blocks) for update in updates]
        rows = np.repeat([update.group * (self.dummy + 1) + update.slot for update in updates], counts)
        columns = np.concatenate([np.arange(u.index, u.index + len(u.blocks)) for u in updates])
        blocks = np.concatenate([np.asarray(u.blocks, dtype=np.int64) for u in updates])
        packed = upload(np.stack([rows, columns, blocks]), self.device)
        self._rows[packed[0], packed[1]] = packed[2].to(torch.int32)

    def advance(self, slots: Tensor) -> Tensor:
        """One more token for each of `slots`; returns its position."""
        positions = self.lengths[slots]
        self.lengths[slots] = positions + 1
        return positions

    def cache_slots(self, slots: Tensor, positions: Tensor, group: int = 0) -> CacheSlots:
        """Where a group of layers keeps tokens at `positions` of the requests in `slots`."""
        blocks = self.block_tables[group][slots, positions // self.block_size].long()
        slots_in_cache = blocks * self.block_size + positions % self.block_size
        return CacheSlots(slots_in_cache, self.blocks, self.kv_heads, self.block_size)

    def decode_context(self, slots: Tensor, max_length: int, shared: Tensor | None = None) -> DecodeContext:
        tables = self.block_tables[0]
        return DecodeContext(slots, tables, self.lengths, max_length, self.kv_heads, self.block_size, shared)

    def for_groups(self, batch: Batch, slots: Tensor) -> Batch:
        """A batch made for the first group of layers, with all groups. slots: [tokens], each token's."""
        others = [self._for_group(batch, slots, group) for group in range(1, len(self.windows))]
        return replace(batch, others=others) if others else batch

    def _for_group(self, batch: Batch, slots: Tensor, group: int) -> Batch:
        tables, decode, prefill = self.block_tables[group], batch.decode, batch.prefill
        if decode is not None:  # in front of a window no block is shared
            shared = None if self.windows[group] else decode.shared_blocks
            decode = replace(decode, block_tables=tables, shared_blocks=shared)
        if prefill is not None:
            prefill = replace(prefill, block_tables=tables)
        cache_slots = self.cache_slots(slots, batch.positions, group)
        return replace(batch, cache_slots=cache_slots, decode=decode, prefill=prefill)
