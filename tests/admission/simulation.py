"""Overload in simulated time: one worker, a broker's queue, several api processes, clients that wait as they are told."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from api.admission import Admission
from api.admission.admission import TICK
from api.errors import ApiError
from api.models import ModelRegistry
from api.tally import Tally
from broker.base import Broker, Message
from schemas.messages import Job, Result, Status, Usage

STEP = 0.02
STATUS_SECONDS = 2.0
RATE_SECONDS = 10.0
TOKENS = 50
SLOTS = 16
PREFETCH = 2 * SLOTS


@dataclass
class Client:
    """One request with its attempts."""

    name: str
    attempts: int = 0
    told: list[int | None] = field(default_factory=list)
    accepted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    api: int = 0


class Simulation:
    """`rate` jobs a second. Serves as the registry and the broker of `apis` Admissions."""

    def __init__(self, *, rate: float, max_wait: float, apis: int, seed: int = 1) -> None:
        self.now = 1_800_000_000.0
        self.clients: list[Client] = []
        self.longest = 0
        self._random = random.Random(seed)
        self._rate = rate
        self._order = itertools.count()
        self._queue: deque[Client] = deque()
        self._fetched: deque[Client] = deque()
        self._running: list[tuple[float, int, Client]] = []
        self._coming: list[tuple[float, int, Client]] = []
        self._busy: deque[int] = deque(maxlen=round(RATE_SECONDS / STEP))
        self._status: list[Status] = []
        self._tallies = [Tally() for _ in range(apis)]
        self._apis = [
            Admission(cast(Broker, self), cast(ModelRegistry, self), tally, max_wait=max_wait, clock=lambda: self.now)
            for tally in self._tallies
        ]

    def workers(self) -> list[Status]:
        return self._status

    async def queue_depth(self, _: str) -> int:
        return len(self._queue)

    async def publish(self, _: str, __: str, message: Message, **___: Any) -> None:
        for api in self._apis:
            await api._on_places(message.body)

    async def run(self, arrivals: Iterator[float], seconds: float) -> None:
        """Let clients come at these times from now, and time pass."""
        begin, tick, told = self.now, self.now, self.now
        upcoming = next(arrivals, None)
        while self.now < begin + seconds:
            while upcoming is not None and begin + upcoming <= self.now:
                client = Client(f"c{len(self.clients)}")
                self.clients.append(client)
                self._ask(client)
                upcoming = next(arrivals, None)
            while self._coming and self._coming[0][0] <= self.now:
                self._ask(heapq.heappop(self._coming)[2])
            self._serve()
            if self.now >= tick:
                tick += TICK
                for api in self._apis:
                    await api.tick()
            if self.now >= told:
                told += STATUS_SECONDS
                self._announce()
            self.now += STEP

    def _ask(self, client: Client) -> None:
        """At any of the processes, as a load balancer has it; refused, again exactly when told."""
        client.attempts += 1
        client.api = self._random.randrange(len(self._apis))
        try:
            self._apis[client.api].admit("m", client.name)
        except ApiError as error:
            wait = None if error.retry_after is None else int(error.retry_after)
            client.told.append(wait)
            if wait is not None:
                heapq.heappush(self._coming, (self.now + wait, next(self._order), client))
            return
        client.accepted_at = self.now
        self._tallies[client.api].begin([job(client)])
        self._queue.append(client)
        self.longest = max(self.longest, len(self._queue))

    def _serve(self) -> None:
        while self._running and self._running[0][0] <= self.now:
            client = heapq.heappop(self._running)[2]
            client.ended_at = self.now
            self._tallies[client.api].end([job(client)])
            result = Result(job=client.name, model="m", outcome="completed", usage=Usage(completion_tokens=TOKENS))
            self._tallies[client.api].finished(result)
        while self._queue and len(self._fetched) + len(self._running) < PREFETCH:
            self._fetched.append(self._queue.popleft())
        while self._fetched and len(self._running) < SLOTS:
            client = self._fetched.popleft()
            client.started_at = self.now
            takes = SLOTS / self._rate * self._random.uniform(0.5, 1.5)
            heapq.heappush(self._running, (self.now + takes, next(self._order), client))

        if self._running:
            self._busy.append(len(self._running))

    def _announce(self) -> None:
        """As a worker does: tokens per second over the last ten seconds of work."""
        mean = sum(self._busy) / len(self._busy) if self._busy else 0.0
        self._status = [
            Status(
                worker="w",
                model="m",
                max_model_len=512,
                vocab_size=9,
                running=len(self._running),
                waiting=len(self._fetched),
                interactive_waiting=len(self._fetched),
                max_running=SLOTS,
                tokens_per_second=mean / SLOTS * self._rate * TOKENS,
                sent=self.now,
            )
        ]


def job(client: Client) -> Job:
    return Job(id=client.name, model="m", prompt="x")


def poisson(rate: float, seconds: float, seed: int = 2) -> Iterator[float]:
    """Arrival times of `rate` clients a second for so long."""
    chance = random.Random(seed)
    time = chance.expovariate(rate)
    while time < seconds:
        yield time
        time += chance.expovariate(rate)
