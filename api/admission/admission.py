"""Whether a request is accepted, and if not, when it may come again.

    wait = jobs that wait * mean output tokens / measured tokens per second          (api.admission.load)

A new request is accepted while the wait is within `max_wait`. One that is refused gets a place: a time at which the
queue will have room for it, behind all places given before. Coming again at that time it may find the queue twice as
long, since others may have come in between; so it gets in before those who have not waited.

Several api processes see the same workers and the same queue of the broker, so they agree on the wait without speaking
of it. Of places they have to speak, since a client may come again anywhere: each tells the others, a few times a second,
over a fanout.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from api.admission.load import UNKNOWN_OUTPUT, Load
from api.admission.places import PromisedPlaces
from api.admission.room import Room
from api.errors import RATE_LIMIT, ApiError
from api.models import ModelRegistry
from api.subscriptions import end
from api.tally import Tally
from broker.base import Broker, BrokerError, Message, Subscription
from schemas.messages import Place, Places, decode, encode
from schemas.topology import PLACES, request_queue

log = logging.getLogger(__name__)

TICK = 0.2
"""Seconds between looks at the broker's queues, and between words to the other processes."""
ACTIVE_SECONDS = 10.0
"""How long after its last request a model's queue is looked at."""
RETURN_FACTOR = 2.0
"""The wait that those who were given a place may find, over that of all others: room for errors of the estimate, and for
those who came in while the queue was shorter than promised."""
MAX_NEWS = 10_000
"""Places told to others at a time; more of them in one tick stay here."""


@dataclass(slots=True)
class _Model:
    load: Load
    places: PromisedPlaces = field(default_factory=PromisedPlaces)
    asked: float = 0.0
    longest: float = UNKNOWN_OUTPUT
    seen: float = 0.0
    promised: list[Place] = field(default_factory=list)
    taken: list[Place] = field(default_factory=list)


class Admission:
    """Admission of interactive requests; `max_wait` in seconds, `clock` gives Unix seconds. Batch lines need none: their
    dispatcher keeps a bounded number of them in the queue."""

    def __init__(
        self,
        broker: Broker,
        models: ModelRegistry,
        tally: Tally,
        *,
        max_wait: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.decisions: Counter[tuple[str, str]] = Counter()
        self._broker = broker
        self._registry = models
        self._tally = tally
        self._max_wait = max_wait
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._models: dict[str, _Model] = {}
        self._subscription: Subscription | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen to the other processes and keep an eye on the queues. Raises BrokerError."""
        self._subscription = await self._broker.subscribe(self._on_places, exchange=PLACES)
        self._ticking = asyncio.create_task(self._tick_for_ever())

    async def close(self) -> None:
        """Stop both."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        await end(self._subscription)

    def admit(self, model: str, key: str, jobs: int = 1, longest: float = UNKNOWN_OUTPUT) -> None:
        """Return if `jobs` jobs of the request known by `key`, of `longest` output tokens at most, may be submitted.
        Raises ApiError 429 with Retry-After, or without where no place becomes free in time."""
        state = self._state(model)
        state.asked = now = self._clock()
        state.longest = min(longest, UNKNOWN_OUTPUT)
        place = self._take(state, key, now)
        wait = self._wait(model, state)
        if wait <= self._max_wait * (RETURN_FACTOR if place else 1.0):
            state.load.since_depth += jobs
            self._count(model, "returned" if place else "admitted")
            return
        if place is not None:
            self._count(model, "broken_promise")
        job_seconds = self._job_seconds(model, state, cautious=True)
        opens = now + self._jobs_ahead(model, state) * job_seconds - self._max_wait
        again = state.places.promise(key, jobs, now=now, opens=opens, job_seconds=job_seconds)
        self._count(model, "refused" if again else "turned_away")
        if again is None:
            raise overloaded(model, None)
        state.promised.append(again)
        raise overloaded(model, math.ceil(again.due - now))

    def room(self, model: str) -> Room | None:
        """How much more the model takes; None while nothing is known of its workers."""
        state = self._state(model)
        wait = self._wait(model, state)
        job_seconds = self._job_seconds(model, state)
        if job_seconds <= 0:
            return None
        may_wait = int(self._max_wait / job_seconds)
        remaining = max(0, may_wait - self._jobs_ahead(model, state)) + state.load.free_slots
        mean = self._tally.mean_output(model, state.longest)
        return Room(may_wait + state.load.slots, min(remaining, may_wait + state.load.slots), mean, wait)

    def waits(self) -> dict[str, float]:
        """Estimated wait in seconds of each model asked for."""
        return {model: self._wait(model, state) for model, state in self._models.items()}

    def _count(self, model: str, decision: str) -> None:
        self.decisions[model, decision] += 1

    def _state(self, model: str) -> _Model:
        if model not in self._models:
            self._models[model] = _Model(Load(self._max_wait))
        return self._models[model]

    def _take(self, state: _Model, key: str, now: float) -> Place | None:
        place = state.places.take(key, now)
        if place is not None:
            state.taken.append(place)
        return place

    def _wait(self, model: str, state: _Model) -> float:
        now = self._clock()
        if now >= state.seen + TICK:
            state.seen = now
            state.load.update([status for status in self._registry.workers() if status.model == model])
        return self._jobs_ahead(model, state) * self._job_seconds(model, state)

    def _jobs_ahead(self, model: str, state: _Model) -> int:
        return state.load.waiting_jobs(self._tally.running[model])

    def _job_seconds(self, model: str, state: _Model, *, cautious: bool = False) -> float:
        return state.load.job_seconds(self._tally.mean_output(model, state.longest), cautious=cautious)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await self.tick()

    async def tick(self) -> None:
        """Ask for the depth of each queue in use, and tell the other processes what has been promised."""
        for model, state in list(self._models.items()):
            if self._clock() < state.asked + ACTIVE_SECONDS:
                await self._look(model, state)
            if state.promised or state.taken:
                await self._tell(model, state)

    async def _look(self, model: str, state: _Model) -> None:
        try:
            state.load.set_depth(await self._broker.queue_depth(request_queue(model, "interactive").name))
        except BrokerError as error:
            state.load.since_depth = 0  # or it would grow for as long as the queue cannot be seen
            log.debug("admission of %s goes by what was known: %s", model, error)

    async def _tell(self, model: str, state: _Model) -> None:
        news = Places(api=self._name, model=model, promised=state.promised[:MAX_NEWS], taken=state.taken[:MAX_NEWS])
        state.promised, state.taken = [], []
        try:
            await self._broker.publish(PLACES, "", Message(encode(news)), confirm=False)
        except BrokerError as error:
            log.warning("%d promised places stay unknown to other processes: %s", len(news.promised), error)

    async def _on_places(self, body: bytes) -> None:
        try:
            news = decode(Places, body)
        except msgspec.MsgspecError as error:
            log.error("malformed places dropped: %s", error)
            return
        if news.api == self._name:
            return
        state = self._state(news.model)
        for place in news.promised:
            state.places.add(place)
        for place in news.taken:
            state.places.drop(place)


def overloaded(model: str, retry_after: int | None) -> ApiError:
    """The queue is as long as it may be. `retry_after` is when there will be room, None where that is too far off."""
    when = "Try again much later." if retry_after is None else f"There will be room in {retry_after} seconds."
    message = f"The model '{model}' has more requests waiting than it can serve soon. {when}"
    return ApiError(429, message, RATE_LIMIT, code="overloaded", retry_after=retry_after)
