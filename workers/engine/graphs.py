"""CUDA graphs of decode-only steps, from the last sampled token to logits, one for each batch-size bucket.

Everything that changes between steps is read from the slots on the device, so a step uploads the slots of its rows, and only
where they changed. Rows that pad a batch to its bucket run the dummy slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.decode_attention import sequences_per_tile
from workers.engine.slots import Slots
from workers.engine.upload import upload
from workers.model.batch import Batch
from workers.model.interface import CausalModel

_BUCKETS = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512]


_SMALLEST_SHARING = 8


class DecodeGraphs:
    """`run` replays the graph of the smallest bucket that holds the batch."""

    def __init__(self, model: CausalModel, kv_cache: Tensor, slots: Slots, max_model_len: int) -> None:
        self._model, self._kv_cache, self._slots = model, kv_cache, slots
        self._max_length = max_model_len
        self._buckets = [size for size in _BUCKETS if size < slots.dummy] + [min(slots.dummy, _BUCKETS[-1])]
        self.largest = self._buckets[-1]
        self._rows = torch.full((self.largest,), slots.dummy, dtype=torch.int64, device=slots.device)
        config = model.config
        self._tile = sequences_per_tile(config.num_heads, config.num_kv_heads)
        self._shared = torch.zeros(-(-self.largest // self._tile), dtype=torch.int32, device=slots.device)
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._shown: tuple[list[int], tuple[int, ...]] = ([], ())
        self._pool: Any = None

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture every bucket, the largest first: the smaller ones fit in its memory."""
        for size in reversed(self._buckets):
            self._capture(size, False)
            if size >= _SMALLEST_SHARING:
                self._capture(size, True)

    def run(self, decode_slots: list[int], shared_blocks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Enqueue a step. Returns the slots [rows] and the logits [rows, vocab], valid until the next run."""
        count = len(decode_slots)
        size = next(bucket for bucket in self._buckets if bucket >= count)
        key = (size, bool(shared_blocks) and size >= _SMALLEST_SHARING)
        if key not in self._graphs:
            self._capture(*key)
        if (decode_slots, shared_blocks) != self._shown:
            self._show(decode_slots, shared_blocks)
        graph, logits = self._graphs[key]
        graph.replay()
        return self._rows[:count], logits[:count]

    def _show(self, decode_slots: list[int], shared_blocks: tuple[int, ...]) -> None:
        """Upload which rows run, and what they share. The dummy rows of a tile's end may attend to its shared blocks:
        nobody reads their results."""
        padded = np.full(self.largest, self._slots.dummy, dtype=np.int64)
        padded[: len(decode_slots)] = decode_slots
        self._rows.copy_(upload(padded, self._slots.device))
        shared = np.zeros(len(self._shared), dtype=np.int32)
        shared[: len(shared_blocks)] = shared_blocks
        self._shared.copy_(upload(shared, self._slots.device))
        self._shown = (list(decode_slots), shared_blocks)

    def _capture(self, size: int, sharing: bool) -> None:
        self._rows.fill_(self._slots.dummy)
        self._shared.zero_()
        self._forward(size, sharing)  # compiles kernels and makes library handles, which a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(size, sharing)
        self._pool = graph.pool()
        self._graphs[size, sharing] = (graph, logits)

    def _forward(self, size: int, sharing: bool) -> Tensor:
        slots, rows = self._slots, self._rows[:size]
        positions = slots.advance(rows)
        shared = self._shared[: -(-size // self._tile)] if sharing else None
        batch = Batch(
            tokens=slots.last_tokens[rows],
            positions=positions,
            cache_slots=slots.cache_slots(rows, positions),
            num_decode=size,
            decode=slots.decode_context(rows, self._max_length, shared),
            prefill=None,
            logit_rows=None,
        )
        logits = self._model.forward(slots.for_groups(batch, rows), self._kv_cache)
        slots.lengths[slots.dummy :].zero_()
        return logits
