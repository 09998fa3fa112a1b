"""What the scheduler tells the runner: one frozen plan a step. The runner never reaches back."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.messages import SamplingParams


@dataclass(frozen=True, slots=True)
class Admission:
    """A request takes a slot: the runner sets up the slot's sampling state. `output` are the tokens made so far."""

    slot: int
    sampling: SamplingParams
    prompt: list[int]
    output: list[int]


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """Compute `tokens` at positions start.. of the request in `slot`; sample after the last where `samples`. `targets`:
    tokens that follow in the prompt, as many as there are, whose log probabilities are wanted."""

    slot: int
    start: int
    tokens: list[int]
    samples: bool
    targets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BlockUpdate:
    """Block table entries of `slot` from `index` on, in the tables of one group of layers."""

    slot: int
    index: int
    blocks: list[int]
    group: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Each slot of `decode_slots` computes the token that the device sampled for it last and samples the next
    one. Sampled ids come back in the order: decode slots, then the prefill rows that sample. `max_context` is the
    longest context after the step, in tokens. `shared_blocks`: leading blocks that the decode slots of each tile have in
    common, empty where that is not worth using (see sharing.py)."""

    decode_slots: list[int]
    prefill: list[PrefillRow]
    admissions: list[Admission]
    block_updates: list[BlockUpdate]
    max_context: int
    shared_blocks: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.decode_slots) + sum(len(row.tokens) for row in self.prefill)

    @property
    def num_sampled(self) -> int:
        return len(self.decode_slots) + sum(row.samples for row in self.prefill)
