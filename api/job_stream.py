"""What a reader of jobs keeps: the tokens shown, and a bounded buffer between the reply queue and the client."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from api.errors import SERVER, ApiError
from schemas.messages import Delta, Job, Result

log = logging.getLogger(__name__)

Event = Delta | Result


@dataclass(slots=True)
class ReaderCounters:
    """What a reader saw since its start; all only grow."""

    frames: int = 0
    malformed_frames: int = 0
    stale_epochs: int = 0
    repeated_deltas: int = 0
    gaps: int = 0
    slow_readers: int = 0
    resumes: int = 0
    unknown_jobs: int = 0
    lost_reply_queues: int = 0


class GapError(Exception):
    """A delta that does not begin where the known tokens of its choice end."""


class ShownTokens:
    """The tokens of one job that have reached its reader, by choice; decides what is new."""

    def __init__(self, choices: int, counters: ReaderCounters) -> None:
        self.epoch = 0
        self._tokens: list[list[int]] = [[] for _ in range(choices)]
        self._finished = [False] * choices
        self._counters = counters

    def is_current(self, epoch: int) -> bool:
        """Whether `epoch` is the highest seen; a higher one becomes it. Lower ones come from a worker that has lost the
        job without knowing it yet."""
        if epoch < self.epoch:
            self._counters.stale_epochs += 1
            return False
        self.epoch = epoch
        return True

    def is_new(self, delta: Delta) -> bool:
        """Whether to show `delta`, which then counts as shown.

        Text cannot be cut by tokens, so a delta is new as a whole or known as a whole: a worker that resumes begins
        exactly where the reader stands. Raises GapError for anything else.
        """
        if not self.is_current(delta.epoch):
            return False
        if not 0 <= delta.choice < len(self._tokens):
            raise GapError(f"choice {delta.choice} of {len(self._tokens)}")
        known = self._tokens[delta.choice]
        end = delta.offset + len(delta.token_ids)
        if self._finished[delta.choice] or (delta.offset < len(known) and end <= len(known)):
            self._counters.repeated_deltas += 1
            return False
        if delta.offset != len(known):
            raise GapError(f"tokens {delta.offset} to {end} of choice {delta.choice} after {len(known)} known ones")
        known.extend(delta.token_ids)
        self._finished[delta.choice] = delta.finish_reason is not None
        return True

    @property
    def is_complete(self) -> bool:
        """Whether every choice has been shown to its end."""
        return all(self._finished)

    def snapshot(self, epoch: int) -> list[list[int]]:
        """The token ids shown of each choice, for a worker that resumes in `epoch`; what older epochs send from now on
        is stale."""
        self.epoch = max(self.epoch, epoch)
        return [list(tokens) for tokens in self._tokens]


class JobStream:
    """An async iterator of the Deltas of one or more jobs and of one Result each; it ends after the last Result.

    The buffer is bounded in tokens; one delta always fits, since a resumed job may catch up in one. A reader that falls
    further behind fails with `slow_reader`: keeping everything for it would let a few stalled clients take the whole
    process down, and holding back the reply queue would stall every other client.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        max_buffered_tokens: int,
        counters: ReaderCounters,
        on_failure: Callable[[JobStream], None],
    ) -> None:
        self.reply_to = ""
        self._shown = {job.id: ShownTokens(job.sampling.n, counters) for job in jobs}
        self._unfinished = {job.id for job in jobs}
        self._streamed = {job.id for job in jobs if job.stream}
        self._events: deque[Event] = deque()
        self._buffered = 0
        self._limit = max_buffered_tokens
        self._ready = asyncio.Event()
        self._error: ApiError | None = None
        self._counters = counters
        self._on_failure = on_failure

    @property
    def failed(self) -> bool:
        """Whether the stream has ended, or will, with an error."""
        return self._error is not None

    @property
    def unfinished(self) -> frozenset[str]:
        """Ids of the jobs without a Result."""
        return frozenset(self._unfinished)

    def shown(self, job: str, epoch: int) -> list[list[int]]:
        """Token ids shown of each choice of `job`, for a worker that resumes it in `epoch`."""
        return self._shown[job].snapshot(epoch)

    def put_delta(self, delta: Delta) -> None:
        """Take in a delta. A gap or a reader too far behind ends the stream with an error."""
        if self._error is not None or delta.job not in self._unfinished:
            return
        try:
            new = self._shown[delta.job].is_new(delta)
        except GapError as gap:
            self._fail_with_gap(str(gap))
            return
        if new:
            self._put(delta, max(1, len(delta.token_ids)))

    def put_result(self, result: Result) -> None:
        """Take in a terminal Result, once for each job. One that completes a streamed job whose last tokens have not
        come (its worker got no answer when it asked where to go on) is a gap."""
        shown = self._shown[result.job]
        if result.job not in self._unfinished or not shown.is_current(result.epoch):
            return
        self._unfinished.discard(result.job)
        if self._error is not None:
            return
        if result.job in self._streamed and result.outcome == "completed" and not shown.is_complete:
            self._fail_with_gap("its last ones did not come")
            return
        self._put(result, 1)

    def fail(self, error: ApiError) -> None:
        """End the stream: what is buffered may still be taken, then `error` is raised. The first error stays. The jobs
        are given up at once: the reader may be stuck in a send to a client that does not read."""
        if self._error is None:
            self._error = error
            self._ready.set()
            self._on_failure(self)

    async def take(self, timeout: float | None = None) -> list[Event]:
        """All that has arrived, waiting for the first; [] once every job has ended. Raises TimeoutError after `timeout`
        seconds without anything, ApiError if the stream failed."""
        if not self._events and self._error is None and self._unfinished:
            self._ready.clear()
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        if self._events:
            events = list(self._events)
            self._events.clear()
            self._buffered = 0
            return events
        if self._error is not None:
            raise self._error
        return []

    async def __aiter__(self) -> AsyncIterator[Event]:
        while events := await self.take():
            for event in events:
                yield event

    def _fail_with_gap(self, what: str) -> None:
        self._counters.gaps += 1
        log.error("tokens lost on their way here: %s", what)
        self.fail(ApiError(500, f"The stream lost tokens: {what}.", SERVER, code="stream_gap"))

    def _put(self, event: Event, tokens: int) -> None:
        self._buffered += tokens
        if self._events and self._buffered > self._limit:
            self._counters.slow_readers += 1
            self._events.clear()
            message = f"The client fell more than {self._limit} tokens behind; the request was cancelled."
            self.fail(ApiError(503, message, SERVER, code="slow_reader"))
            return
        self._events.append(event)
        self._ready.set()
