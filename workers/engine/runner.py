"""Runs plans on the device. Slots' block tables, lengths and last tokens live there and change by small deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.decode_attention import DecodeContext
from kernels.prefill_attention import PrefillContext, Span, plan_tiles
from workers.engine.graphs import DecodeGraphs
from workers.engine.masks import MaskSource, no_masks
from workers.engine.plan import PrefillRow, StepPlan
from workers.engine.pooler import Pooler
from workers.engine.sampler import Sampled, Sampler
from workers.engine.scores import Scores, score
from workers.engine.slots import Slots
from workers.engine.upload import upload
from workers.model.batch import Batch
from workers.model.decoder import Decoder
from workers.model.interface import CausalModel
from workers.model.pooling import Pooling


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A launched step. `wait` blocks until its sampled ids are on the host."""

    sampled: Sampled | None
    ready: torch.cuda.Event | None
    scores: Scores | None = None
    vectors: Tensor | None = None

    def wait(self) -> Sampled | None:
        """The sampled ids, and the logprobs where asked for, on the host, as then are the `scores` of prompts, or their
        `vectors`."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.sampled


class ModelRunner:
    """Owns the model, the cache and the slots. `launch` enqueues one plan and returns without waiting for the device, but
    for what `masks` waits for."""

    def __init__(
        self,
        model: CausalModel,
        kv_cache: Tensor,
        slots: int,
        max_model_len: int,
        eos_token_ids: list[int],
        cuda_graphs: bool = False,
        pooling: Pooling | None = None,
    ) -> None:
        self.model, self.kv_cache = model, kv_cache
        self.device = kv_cache.device
        self.slots = Slots(slots, max_model_len, kv_cache, model.config.kv_layout.windows)
        self.sampler = Sampler(slots + 1, model.config.vocab_size, eos_token_ids, self.device)
        self.pooler: Pooler | None = None
        if pooling is not None:
            assert isinstance(model, Decoder)
            self.pooler = Pooler(pooling, slots + 1, model)
        self.graphs = DecodeGraphs(model, kv_cache, self.slots, max_model_len) if cuda_graphs else None

    @torch.inference_mode()
    def launch(self, plan: StepPlan, masks: MaskSource = no_masks) -> StepHandle:
        self.slots.update(plan.block_updates)
        if self.pooler is not None:
            return self._copy_out(None, None, self.pooler(self._batch(plan), self.kv_cache, plan.prefill))
        if plan.admissions:
            self.sampler.admit(plan.admissions)
        sampling = plan.decode_slots + [row.slot for row in plan.prefill if row.samples]
        if self.graphs is not None and not plan.prefill and len(sampling) <= self.graphs.largest:
            slots, logits = self.graphs.run(plan.decode_slots, plan.shared_blocks)
        else:
            batch = self._batch(plan)
            logits = self.model.forward(batch, self.kv_cache)
            slots = self._tensor(sampling)
        scores = self._score(logits[len(sampling) :], plan)
        if not sampling:
            return self._copy_out(None, scores)
        logits = logits[: len(sampling)]
        sampled = self.sampler.sample(logits, slots, sampling, self.slots.lengths[slots], masks)
        self.slots.last_tokens[slots] = sampled.ids
        return self._copy_out(sampled, scores)

    def _score(self, logits: Tensor, plan: StepPlan) -> Scores | None:
        targets = [token for row in plan.prefill for token in row.targets]
        return score(logits, self._tensor(targets)) if targets else None

    def _batch(self, plan: StepPlan) -> Batch:
        decode, rows = self._tensor(plan.decode_slots), plan.prefill
        decode_positions = self.slots.advance(decode)
        tokens = self._tensor([token for row in rows for token in row.tokens])
        positions = token_slots = tokens
        if rows:
            counts = [len(row.tokens) for row in rows]
            positions = self._tensor(np.concatenate([np.arange(r.start, r.start + len(r.tokens)) for r in rows]))
            token_slots = self._tensor(np.repeat([row.slot for row in rows], counts))
            ends = self._tensor([[row.slot, row.start + len(row.tokens)] for row in rows])
            self.slots.lengths[ends[:, 0]] = ends[:, 1]
        tokens = torch.cat((self.slots.last_tokens[decode], tokens))
        positions = torch.cat((decode_positions, positions))
        slots = torch.cat((decode, token_slots))
        count = len(plan.decode_slots)
        batch = Batch(
            tokens=tokens,
            positions=positions,
            cache_slots=self.slots.cache_slots(slots, positions),
            num_decode=count,
            decode=self._decode_context(decode, plan) if count else None,
            prefill=self._prefill_context(rows) if rows else None,
            logit_rows=self._logit_rows(rows, count) if rows else None,
        )
        return self.slots.for_groups(batch, slots)

    def _decode_context(self, decode: Tensor, plan: StepPlan) -> DecodeContext:
        shared = self._tensor(list(plan.shared_blocks), np.int32) if plan.shared_blocks else None
        return self.slots.decode_context(decode, plan.max_context, shared)

    def _prefill_context(self, rows: list[PrefillRow]) -> PrefillContext:
        spans, start = [], 0
        for row in rows:
            spans.append(Span(row.slot, start, len(row.tokens), row.start + len(row.tokens)))
            start += len(row.tokens)
        tiles = self._tensor(plan_tiles(spans), np.int32) if self.device.type == "cuda" else None
        return PrefillContext(spans, self.slots.block_tables[0], tiles)

    def _logit_rows(self, rows: list[PrefillRow], num_decode: int) -> Tensor:
        """Those that are sampled from, in the plan's order, then those that are scored."""
        ends = num_decode + np.cumsum([len(row.tokens) for row in rows]) - 1
        wanted = [end for end, row in zip(ends, rows, strict=True) if row.samples]
        begins = [end - len(row.tokens) + 1 for end, row in zip(ends, rows, strict=True)]
        scored = [begin + index for begin, row in zip(begins, rows, strict=True) for index in range(len(row.targets))]
        return self._tensor([*range(num_decode), *wanted, *scored])

    def _tensor(self, values: list[int] | list[list[int]] | np.ndarray, dtype: type = np.int64) -> Tensor:
        return upload(np.asarray(values, dtype=dtype), self.device)

    def _copy_out(self, sampled: Sampled | None, scores: Scores | None, vectors: Tensor | None = None) -> StepHandle:
        if self.device.type == "cpu" or (sampled is None and scores is None and vectors is None):
            return StepHandle(sampled, None, scores, vectors)
        if sampled is not None:
            parts = (sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
            sampled = Sampled(_to_pinned(sampled.ids), *(None if part is None else _to_pinned(part) for part in parts))
        if scores is not None:
            given = (scores.logprobs, scores.ranks, scores.top_ids, scores.top_logprobs)
            scores = Scores(*(_to_pinned(part) for part in given))
        vectors = None if vectors is None else _to_pinned(vectors)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return StepHandle(sampled, event, scores, vectors)


def _to_pinned(source: Tensor) -> Tensor:
    """Enqueue a copy to pinned memory; a copy to pageable memory would wait for the device."""
    return torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source, non_blocking=True)
