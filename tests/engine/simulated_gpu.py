"""The real scheduler in simulated time: a step takes what the weights, the tokens and the cached keys in it take on a GPU.

As the engine does, the next step is planned while one runs, and tokens are read one step late.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from schemas.messages import SamplingParams
from workers.engine.block_pool import BlockPool
from workers.engine.plan import StepPlan
from workers.engine.request import Request, RequestState
from workers.engine.scheduler import Scheduler, SchedulerConfig
from workers.protocol import BATCH_PRIORITY

WEIGHTS = 3.7e-3
TOKEN = 24e-6
CACHED_TOKEN = 30e-9
LAUNCH, MIXED_LAUNCH = 0.4e-3, 0.8e-3
"""Seconds: an 8B model in bf16 on one H200, from docs/performance.md. Weights are read while tokens are computed, whichever
takes longer."""

PROMPT, OUTPUT = 512, 256


@dataclass(slots=True)
class Seen:
    """Of one request, in simulated seconds."""

    arrived: float
    batch: bool
    times: list[float] = field(default_factory=list)


class SimulatedGpu:
    """`rate` interactive requests a second at random times; with `backlog` the batch class never runs dry."""

    def __init__(
        self, *, rate: float, backlog: bool, max_running: int = 256, blocks: int = 8000, seed: int = 1
    ) -> None:
        config = SchedulerConfig(max_running, 8192, 64, 8192, watermark_blocks=blocks // 100)
        self.scheduler = Scheduler(config, BlockPool(blocks))
        self.now = 0.0
        self.seen: dict[str, Seen] = {}
        self.tokens = {False: 0, True: 0}
        self._numbers = count()
        self._draw = {False: random.Random(seed), True: random.Random(-seed)}
        self._backlog = backlog
        self._arrivals = self._poisson(rate)
        self._next = next(self._arrivals)
        self._max_running = max_running

    def _poisson(self, rate: float) -> Iterator[float]:
        moment, gaps = 0.0, random.Random(rate)
        while True:
            moment += gaps.expovariate(rate)
            yield moment

    def run(self, seconds: float) -> None:
        """Simulate so long."""
        under_way: list[Request] = []
        device_free = 0.0
        while self.now < seconds:
            self._arrive()
            scheduled = self.scheduler.schedule()
            if scheduled is None and not under_way:
                self.now = max(self.now, self._next)
                continue
            ends = max(device_free, self.now) + (0.0 if scheduled is None else self._seconds(scheduled[0]))
            self.now = max(self.now, device_free)  # the step before has ended: its tokens are read, this one runs
            self._read(under_way)
            under_way = [] if scheduled is None else scheduled[1]
            device_free = ends

    def _seconds(self, plan: StepPlan) -> float:
        decoding = set(plan.decode_slots)
        context = sum(r.num_computed for r in self.scheduler.running if r.slot in decoding)
        return (
            max(WEIGHTS, TOKEN * plan.num_tokens) + CACHED_TOKEN * context + (MIXED_LAUNCH if plan.prefill else LAUNCH)
        )

    def _arrive(self) -> None:
        while self._next <= self.now:
            self._add(self._next, batch=False)
            self._next = next(self._arrivals)
        waiting = sum(r.priority > 0 for r in self.scheduler.waiting)
        for _ in range(self._max_running // 4 - waiting if self._backlog else 0):
            self._add(self.now, batch=True)

    def _add(self, moment: float, *, batch: bool) -> None:
        number = next(self._numbers)
        prompt = [number] * PROMPT
        length = self._draw[batch].randint(OUTPUT // 2, OUTPUT * 3 // 2)
        request = Request(str(number), prompt, SamplingParams(), length, number, BATCH_PRIORITY if batch else 0)
        self.seen[request.id] = Seen(moment, batch)
        self.scheduler.add(request)

    def _read(self, requests: list[Request]) -> None:
        for request in requests:
            if request.state is RequestState.FINISHED:
                continue
            self.scheduler.update(request, 7)
            seen = self.seen[request.id]
            seen.times.append(self.now)
            self.tokens[seen.batch] += 1
            if len(request.output) == request.max_tokens:
                self.scheduler.finish(request)

    def ttft(self, after: float) -> list[float]:
        """Of interactive requests that came after that moment."""
        return sorted(
            s.times[0] - s.arrived for s in self.seen.values() if not s.batch and s.times and s.arrived > after
        )

    def gaps(self) -> list[float]:
        """Between tokens of interactive requests."""
        return sorted(
            b - a for s in self.seen.values() if not s.batch for a, b in zip(s.times, s.times[1:], strict=False)
        )
