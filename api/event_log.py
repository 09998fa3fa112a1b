"""The events of a request from their beginning, for any number of readers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from api.errors import SERVER, ApiError
from api.job_stream import Event
from schemas.messages import Delta, Job, Result

KEPT_TOKENS = 65_536
"""Tokens that a log holds. Beyond them the oldest go: readers behind them fail, and nobody can begin to read any more."""


class EventReader(Protocol):
    """The events of one or more jobs, in order: a JobStream, or a LogReader."""

    async def take(self, timeout: float | None = None) -> list[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...


class JobSource(Protocol):
    """Where the events of jobs come from: the queue, or a log of them."""

    def submit(self, *jobs: Job) -> AbstractAsyncContextManager[EventReader]: ...


class EventLog:
    """Filled by one, read by many; ends once, in success or with an error."""

    def __init__(self, limit: int = KEPT_TOKENS) -> None:
        self.first = 0
        self._limit = limit
        self._events: deque[Event] = deque()
        self._tokens = 0
        self._ended = False
        self._error: ApiError | None = None
        self._readers: set[asyncio.Event] = set()

    @property
    def is_whole(self) -> bool:
        """Whether it still has its beginning."""
        return self.first == 0

    def extend(self, events: Iterable[Event]) -> None:
        """Add events; the oldest go where there are too many."""
        for event in events:
            self._events.append(event)
            self._tokens += _tokens(event)
        while self._tokens > self._limit and len(self._events) > 1:
            self._tokens -= _tokens(self._events.popleft())
            self.first += 1
        self._wake()

    def end(self, error: ApiError | None = None) -> None:
        """Nothing follows. Readers get `error` after what there is. The first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
        self._wake()

    def since(self, position: int) -> list[Event]:
        """The events from `position` on, which must not be before `first`."""
        return [self._events[index] for index in range(position - self.first, len(self._events))]

    async def wait(self, position: int, timeout: float | None) -> bool:
        """Wait for events from `position` on. False where there will be none. Raises TimeoutError, or ApiError where
        the log ended with one or has lost that position."""
        ready = asyncio.Event()
        self._readers.add(ready)
        try:
            async with asyncio.timeout(timeout):
                while self.first + len(self._events) <= position and not self._ended:
                    ready.clear()
                    await ready.wait()
        finally:
            self._readers.discard(ready)
        if position < self.first:
            raise ApiError(503, "The client fell too far behind the answer.", SERVER, code="slow_reader")
        if self.first + len(self._events) > position:
            return True
        if self._error is not None:
            raise self._error
        return False

    def _wake(self) -> None:
        for ready in self._readers:
            ready.set()


class LogReader:
    """Reads a log from its beginning, by the same calls as a JobStream."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._position = 0

    async def take(self, timeout: float | None = None) -> list[Event]:
        """All that has come since the last time, waiting for the first; [] at the end. Raises TimeoutError, ApiError."""
        if not await self._log.wait(self._position, timeout):
            return []
        events = self._log.since(self._position)
        self._position += len(events)
        return events

    async def __aiter__(self) -> AsyncIterator[Event]:
        while events := await self.take():
            for event in events:
                yield event


class LogSource:
    """What there is, and what is still to come, of jobs submitted before."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    @asynccontextmanager
    async def submit(self, *_: Job) -> AsyncIterator[LogReader]:
        """The jobs' events from their beginning."""
        yield LogReader(self._events)


def log_of(results: Sequence[Result], *, stream: bool) -> EventLog:
    """The log of a request that has ended, from its stored Results; of a streamed one each choice is one delta."""
    log = EventLog()
    for result in results:
        if stream:
            log.extend(_deltas(result))
        log.extend([result])
    log.end()
    return log


def _deltas(result: Result) -> list[Delta]:
    return [
        Delta(
            job=result.job,
            epoch=result.epoch,
            offset=0,
            choice=choice.index,
            text=choice.text,
            reasoning=choice.reasoning,
            tool_calls=choice.tool_calls,
            token_ids=choice.token_ids,
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
            prompt_tokens=result.usage.prompt_tokens,
            prompt_token_ids=choice.prompt_token_ids,
            prompt_logprobs=choice.prompt_logprobs,
        )
        for choice in result.choices
    ]


def _tokens(event: Event) -> int:
    return max(1, len(event.token_ids)) if isinstance(event, Delta) else 1
