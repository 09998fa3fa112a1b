"""Runs plans on the device. Slots' block tables, lengths and last tokens live there and change by small deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.plan import PrefillRow, StepPlan
from workers.engine.sampler import Sampled, Sampler
from workers.model.batch import Batch, PrefillSpan
from workers.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A launched step. `wait` blocks until its sampled ids are on the host."""

    sampled: Sampled | None
    ready: torch.cuda.Event | None

    def wait(self) -> Sampled | None:
        """The sampled ids, and the logprobs where asked for, on the host."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.sampled


class ModelRunner:
    """Owns the model, the cache and the slots. `launch` enqueues one plan and returns without waiting for the device."""

    def __init__(
        self, model: Decoder, kv_cache: Tensor, slots: int, max_model_len: int, eos_token_ids: list[int]
    ) -> None:
        self.model, self.kv_cache = model, kv_cache
        self.device = kv_cache.device
        self.block_size = kv_cache.shape[4]
        self.sampler = Sampler(slots, model.config.vocab_size, eos_token_ids, self.device)
        table_length = -(-max_model_len // self.block_size)
        self.block_tables = torch.zeros(slots, table_length, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.last_tokens = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self._head_rows = torch.arange(model.config.num_kv_heads, device=self.device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        self._apply_updates(plan)
        batch, sampling_slots = self._batch(plan)
        logits = self.model.forward(batch, self.kv_cache)
        if not sampling_slots:
            return StepHandle(None, None)
        slots = self._tensor(sampling_slots)
        sampled = self.sampler.sample(logits, slots, sampling_slots, self.lengths[slots])
        self.last_tokens[slots] = sampled.ids
        return self._copy_out(sampled)

    def _apply_updates(self, plan: StepPlan) -> None:
        if plan.admissions:
            self.sampler.admit(plan.admissions)
        if plan.block_updates:
            counts = [len(update.blocks) for update in plan.block_updates]
            slots = np.repeat([update.slot for update in plan.block_updates], counts)
            columns = np.concatenate([np.arange(u.index, u.index + len(u.blocks)) for u in plan.block_updates])
            blocks = np.concatenate([np.asarray(u.blocks, dtype=np.int64) for u in plan.block_updates])
            packed = self._tensor(np.stack([slots, columns, blocks]))
            self.block_tables[packed[0], packed[1]] = packed[2]

    def _batch(self, plan: StepPlan) -> tuple[Batch, list[int]]:
        """The step's tensors, and the slots which sample, in the plan's order."""
        decode = self._tensor(plan.decode_slots)
        rows = plan.prefill
        tokens = self._tensor([token for row in rows for token in row.tokens])
        counts = [len(row.tokens) for row in rows]
        if rows:
            positions = self._tensor(np.concatenate([np.arange(r.start, r.start + len(r.tokens)) for r in rows]))
            token_slots = self._tensor(np.repeat([row.slot for row in rows], counts))
        else:
            positions = token_slots = tokens
        decode_positions = self.lengths[decode]
        tokens = torch.cat((self.last_tokens[decode], tokens))
        positions = torch.cat((decode_positions, positions))
        token_slots = torch.cat((decode, token_slots))
        self.lengths[decode] = decode_positions + 1
        if rows:
            ends = self._tensor([[row.slot, row.start + len(row.tokens)] for row in rows])
            self.lengths[ends[:, 0]] = ends[:, 1]
        decode_rows, decode_mask = self._decode_context(decode, plan.max_context)
        batch = Batch(
            tokens=tokens,
            positions=positions,
            cache_rows=self._cache_rows(token_slots, positions),
            num_decode=len(plan.decode_slots),
            decode_rows=decode_rows,
            decode_mask=decode_mask,
            prefill=self._spans(rows, len(plan.decode_slots)),
            logit_rows=self._logit_rows(rows, len(plan.decode_slots)),
        )
        return batch, plan.decode_slots + [row.slot for row in rows if row.samples]

    def _cache_rows(self, slots: Tensor, positions: Tensor) -> Tensor:
        """[tokens * kv_heads]: where each token's keys go in the cache viewed as rows of head_dim."""
        blocks = self.block_tables[slots, positions // self.block_size]
        heads = blocks[:, None] * len(self._head_rows) + self._head_rows
        return (heads * self.block_size + (positions % self.block_size)[:, None]).flatten()

    def _decode_context(self, slots: Tensor, max_context: int) -> tuple[Tensor | None, Tensor | None]:
        if not len(slots):
            return None, None
        blocks = -(-max_context // self.block_size)
        tables = self.block_tables[slots, :blocks]
        rows = tables[:, None, :] * len(self._head_rows) + self._head_rows[None, :, None]
        keys = torch.arange(blocks * self.block_size, device=self.device)
        return rows.flatten(), (keys < self.lengths[slots][:, None])[:, None, None, :]

    def _spans(self, rows: list[PrefillRow], start: int) -> list[PrefillSpan]:
        spans = []
        for row in rows:
            context = row.start + len(row.tokens)
            table = self.block_tables[row.slot, : -(-context // self.block_size)]
            spans.append(PrefillSpan(start, len(row.tokens), context, table))
            start += len(row.tokens)
        return spans

    def _logit_rows(self, rows: list[PrefillRow], num_decode: int) -> Tensor | None:
        if not rows:
            return None
        ends = num_decode + np.cumsum([len(row.tokens) for row in rows]) - 1
        wanted = [end for end, row in zip(ends, rows, strict=True) if row.samples]
        return self._tensor([*range(num_decode), *wanted])

    def _tensor(self, values: list[int] | list[list[int]] | np.ndarray) -> Tensor:
        host = torch.from_numpy(np.asarray(values, dtype=np.int64))
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def _copy_out(self, sampled: Sampled) -> StepHandle:
        if self.device.type == "cpu":
            return StepHandle(sampled, None)
        parts = (sampled.ids, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
        host = [None if part is None else part.to("cpu", non_blocking=True) for part in parts]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        assert host[0] is not None
        return StepHandle(Sampled(host[0], *host[1:]), event)
