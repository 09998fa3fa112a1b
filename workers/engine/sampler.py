"""Sampling state of every slot, on the device, and the choice of the next tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.argmax import argmax
from kernels.sampling import SamplingRows, apply_penalties, sample
from schemas.messages import MAX_LOGPROBS, SamplingParams
from workers.engine.bad_sequences import BadSequences
from workers.engine.masks import MaskSource, TokenMasks, no_masks
from workers.engine.plan import Admission
from workers.engine.upload import upload

RANDOM, TRUNCATES_K, TRUNCATES_P, PENALISED, EDITED, LOGPROBS, GRAMMAR = 1, 2, 4, 8, 16, 32, 64
FLOATS = 6  # as in Shape behind top_k, then frequency and presence penalty


@dataclass(frozen=True, slots=True)
class Sampled:
    """ids: [rows]; logprobs of the sampled ids [rows] and the best alternatives [rows, MAX_LOGPROBS], where asked for."""

    ids: Tensor
    logprobs: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Edits:
    """What is done to single logits of one slot: the bias is added; what ends the output is ruled out while it is shorter
    than min_tokens, and so are bad sequences' last tokens and all tokens that are not allowed."""

    bias_ids: Tensor
    bias: Tensor
    end_ids: Tensor
    min_tokens: int
    allowed_ids: Tensor | None
    bad: BadSequences | None


class Shape(NamedTuple):
    """What shapes the distribution, with what does nothing where a request leaves it unset."""

    top_k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, params: SamplingParams) -> Shape:
        return cls(**{name: value for name in cls._fields if (value := getattr(params, name)) is not None})


def flags_of(params: SamplingParams) -> int:
    """Which parts of the sampler a request needs."""
    flags, shape = 0, Shape.of(params)
    if shape.temperature > 0:
        flags |= RANDOM
        flags |= TRUNCATES_K if shape.top_k > 0 else 0
        flags |= TRUNCATES_P if shape.top_p < 1 else 0
    if shape.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
        flags |= PENALISED
    if params.logit_bias or params.min_tokens or params.bad_token_ids or params.allowed_token_ids is not None:
        flags |= EDITED
    if params.logprobs is not None:
        flags |= LOGPROBS
    if params.grammar is not None:
        flags |= GRAMMAR
    return flags


class Sampler:
    """`admit` sets up slots, `sample` chooses tokens for rows of logits. What no row needs is not computed."""

    def __init__(self, slots: int, vocab: int, eos_token_ids: list[int], device: torch.device) -> None:
        self.vocab, self.device, self.slots = vocab, device, slots
        self.eos_token_ids = eos_token_ids
        self.flags = np.zeros(slots, dtype=np.uint8)
        self.floats = torch.zeros(slots, FLOATS, device=device)
        self.integers = torch.zeros(slots, 3, dtype=torch.int64, device=device)  # top_k, seed, prompt length
        self.edits: dict[int, _Edits] = {}
        self._counts: Tensor | None = None
        self._in_prompt: Tensor | None = None

    def admit(self, admissions: list[Admission]) -> None:
        """Set up the slots of requests that start in this step."""
        slots = upload(np.asarray([a.slot for a in admissions]), self.device)
        shapes = [Shape.of(a.sampling) for a in admissions]
        floats = [
            (*shape[1:], a.sampling.frequency_penalty, a.sampling.presence_penalty)
            for shape, a in zip(shapes, admissions, strict=True)
        ]
        self.floats[slots] = upload(np.asarray(floats, dtype=np.float32), self.device)
        integers = [
            (shape.top_k, a.sampling.seed or 0, len(a.prompt)) for shape, a in zip(shapes, admissions, strict=True)
        ]
        self.integers[slots] = upload(np.asarray(integers, dtype=np.int64), self.device)
        for admission in admissions:
            self.flags[admission.slot] = flags = flags_of(admission.sampling)
            self.edits.pop(admission.slot, None)
            if flags & EDITED:
                self.edits[admission.slot] = self._make_edits(admission)
            if flags & PENALISED:
                self._count(admission)

    def sample(
        self, logits: Tensor, slots: Tensor, host_slots: list[int], lengths: Tensor, masks: MaskSource = no_masks
    ) -> Sampled:
        """logits: [rows, vocab]; slots, lengths: [rows], lengths being tokens before the sampled one."""
        flags = int(np.bitwise_or.reduce(self.flags[host_slots]))
        if flags == 0:
            return Sampled(argmax(logits))
        raw = logits
        if flags & EDITED:
            logits = self._edit(logits.float().clone(), host_slots, lengths - self.integers[slots, 2])
        if flags & PENALISED:
            logits = self._penalise(logits.float(), slots)
        if flags & GRAMMAR and (allowed := masks()) is not None:
            logits = self._constrain(logits, raw, allowed)
        if flags & RANDOM:
            top_k, top_p = bool(flags & TRUNCATES_K), bool(flags & TRUNCATES_P)
            ids = sample(logits, SamplingRows(slots, self.floats, self.integers, lengths, top_k, top_p))
        else:
            ids = argmax(logits)
        if flags & PENALISED:
            assert self._counts is not None
            self._counts[slots, ids] += 1
        if flags & EDITED:
            self._note(ids, host_slots)
        return self._with_logprobs(raw.float(), ids) if flags & LOGPROBS else Sampled(ids)

    def _with_logprobs(self, logits: Tensor, ids: Tensor) -> Sampled:
        """Of the model's own distribution, before temperature, penalties and truncation."""
        logprobs = logits.log_softmax(-1)
        top = logprobs.topk(min(MAX_LOGPROBS, self.vocab), dim=-1)
        return Sampled(ids, logprobs.gather(-1, ids[:, None])[:, 0], top.indices, top.values)

    def _make_edits(self, admission: Admission) -> _Edits:
        params = admission.sampling
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(self.eos_token_ids))
        allowed = params.allowed_token_ids
        return _Edits(
            bias_ids=torch.tensor(list(params.logit_bias), dtype=torch.int64, device=self.device),
            bias=torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=self.device),
            end_ids=torch.tensor(sorted(ends), dtype=torch.int64, device=self.device),
            min_tokens=params.min_tokens,
            allowed_ids=None if allowed is None else torch.tensor(allowed, dtype=torch.int64, device=self.device),
            bad=BadSequences(params.bad_token_ids, admission.output, self.device) if params.bad_token_ids else None,
        )

    def _edit(self, logits: Tensor, host_slots: list[int], made: Tensor) -> Tensor:
        for row, slot in enumerate(host_slots):
            edits = self.edits.get(slot)
            if edits is None:
                continue
            logits[row, edits.bias_ids] += edits.bias
            early = made[row] < edits.min_tokens
            logits[row, edits.end_ids] = logits[row, edits.end_ids].masked_fill(early, -torch.inf)
            if edits.bad is not None:
                edits.bad.rule_out(logits[row])
            if edits.allowed_ids is not None:
                kept = logits[row, edits.allowed_ids]
                logits[row] = -torch.inf
                logits[row, edits.allowed_ids] = kept
        return logits

    def _note(self, ids: Tensor, host_slots: list[int]) -> None:
        """Sampled tokens of the slots that have bad sequences."""
        for row, slot in enumerate(host_slots):
            edits = self.edits.get(slot)
            if edits is not None and edits.bad is not None:
                edits.bad.take(ids[row : row + 1])

    def _constrain(self, logits: Tensor, raw: Tensor, masks: TokenMasks) -> Tensor:
        """Rule out what the grammars do not allow. Where the request itself forbids all that its grammar allows (the end,
        before min_tokens), the grammar counts."""
        rows = upload(np.asarray(masks.rows), self.device)
        allowed = masks.allowed(self.vocab, self.device)
        kept = logits[rows].masked_fill(~allowed, -torch.inf)
        if raw is not logits:
            stuck = kept.amax(-1, keepdim=True) == -torch.inf
            kept = torch.where(stuck & allowed, raw[rows].to(kept.dtype), kept)
        return logits.index_copy(0, rows, kept)

    def _penalise(self, logits: Tensor, slots: Tensor) -> Tensor:
        assert self._counts is not None
        assert self._in_prompt is not None
        repetition, frequency, presence = self.floats[slots, 3:].unbind(-1)
        # rows that are not penalised have neutral penalties, whatever their slot's counts say
        return apply_penalties(logits, self._counts[slots], self._in_prompt[slots], repetition, frequency, presence)

    def _count(self, admission: Admission) -> None:
        if self._counts is None or self._in_prompt is None:
            self._counts = torch.zeros(self.slots, self.vocab, dtype=torch.int32, device=self.device)
            self._in_prompt = torch.zeros(self.slots, self.vocab, dtype=torch.bool, device=self.device)
        output = torch.tensor(admission.output, dtype=torch.int64, device=self.device)
        self._counts[admission.slot] = torch.bincount(output, minlength=self.vocab).to(torch.int32)
        self._in_prompt[admission.slot] = False
        self._in_prompt[admission.slot, torch.tensor(admission.prompt, device=self.device)] = True
