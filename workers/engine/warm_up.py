"""Steps of every kind, run before the first request: it would otherwise wait for kernels to compile, for libraries to load
theirs, and for graphs to be captured."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.decode_attention import SPLITS
from schemas.messages import SamplingParams
from workers.engine.plan import Admission, PrefillRow, StepPlan
from workers.engine.runner import ModelRunner

_ROWS = (1, 17)
"""Few and many rows are sampled by different kernels."""
_SAMPLINGS = [SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p) for top_k in (0, 5) for top_p in (1.0, 0.5)] + [
    SamplingParams()
]  # the last leaves the slot as it was


def warm_up(runner: ModelRunner, max_batched_tokens: int, max_model_len: int) -> None:
    """Capture the graphs of every batch size and run steps of every kind. On a CPU there is nothing to prepare."""
    if runner.device.type == "cpu":
        return
    if runner.graphs is not None:
        runner.graphs.capture_all()
    run_steps(runner, max_batched_tokens, max_model_len)


@torch.inference_mode()
def run_steps(runner: ModelRunner, max_batched_tokens: int, max_model_len: int) -> None:
    """All rows are the dummy slot's, so what they write goes to the null block."""
    slots = runner.slots
    for plan in _plans(slots.dummy, slots.block_size, max_batched_tokens, max_model_len, runner.pooler is None):
        runner.launch(plan)
        slots.lengths[slots.dummy :].zero_()  # a full one has no place for one token more
    slots.last_tokens[slots.dummy :].zero_()


def _plans(
    slot: int, block_size: int, max_batched_tokens: int, max_model_len: int, decodes: bool
) -> Iterator[StepPlan]:
    tokens = 1
    while tokens < max_batched_tokens:
        yield _prefill(slot, tokens, max_model_len)
        tokens *= 2
    yield _prefill(slot, max_batched_tokens, max_model_len)
    if not decodes:
        return
    row = PrefillRow(slot, 0, [0], True)
    for splits in SPLITS:
        for shared in ((), (1,)):
            yield StepPlan([slot], [row], [], [], splits * block_size, shared)
    for sampling in _SAMPLINGS:
        for rows in _ROWS:
            yield StepPlan([slot] * rows, [], [Admission(slot, sampling, [0], [])], [], block_size)


def _prefill(slot: int, tokens: int, max_model_len: int) -> StepPlan:
    """One step of as many tokens, in prompts of at most `max_model_len`."""
    whole, rest = divmod(tokens, max_model_len)
    rows = [PrefillRow(slot, 0, [0] * size, True) for size in [max_model_len] * whole + [rest] * (rest > 0)]
    return StepPlan([], rows, [], [], min(tokens, max_model_len))
