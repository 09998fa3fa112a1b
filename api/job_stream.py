"""What a reader of jobs keeps: the tokens shown, and a bounded buffer between the reply queue and the client."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from api.errors import SERVER, ApiError, broker_unavailable
from api.shown_tokens import REPAIR_SECONDS, GapError, Inquiry, ReaderCounters, ShownTokens
from api.wakeup import Wakeup
from schemas.messages import Delta, Job, Result

log = logging.getLogger(__name__)

Event = Delta | Result


class JobStream:
    """An async iterator of the Deltas of one or more jobs and of one Result each; it ends after the last Result.

    The buffer is bounded in tokens; one delta always fits, since a resumed job may catch up in one. A reader that falls
    further behind fails with `slow_reader`: keeping everything for it would let a few stalled clients take the whole
    process down, and holding back the reply queue would stall every other client.

    Where something is missing, `on_gap` is told the job's id once; from then on `is_due` says when to ask about it
    again. What stays missing for REPAIR_SECONDS ends the stream with an error.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        max_buffered_tokens: int,
        counters: ReaderCounters,
        on_failure: Callable[[JobStream], None],
        on_gap: Callable[[str], None],
    ) -> None:
        now = time.monotonic()
        self._shown = {job.id: ShownTokens(job.sampling.n, counters) for job in jobs}
        self._inquiries = {job.id: Inquiry(now) for job in jobs}
        self._unfinished = {job.id for job in jobs}
        self._streamed = {job.id for job in jobs if job.stream}
        self._events: deque[Event] = deque()
        self._buffered = 0
        self._limit = max_buffered_tokens
        self._wakeup = Wakeup()
        self._error: ApiError | None = None
        self._counters = counters
        self._on_failure = on_failure
        self._on_gap = on_gap

    @property
    def failed(self) -> bool:
        """Whether the stream has ended, or will, with an error."""
        return self._error is not None

    @property
    def unfinished(self) -> frozenset[str]:
        """Ids of the jobs without a Result."""
        return frozenset(self._unfinished)

    def answer(self, job: str, epoch: int) -> list[list[int]]:
        """Token ids shown of each choice of `job`, for a worker that resumes it in `epoch`."""
        self._inquiries[job].heard = True
        return self._shown[job].snapshot(epoch)

    def position(self, job: str) -> tuple[int, list[list[int]]]:
        """The highest epoch seen of `job`, and the token ids shown of each choice."""
        return self._shown[job].epoch, self._shown[job].snapshot()

    def withdraw(self, job: str) -> None:
        """The job was never accepted, or is left to itself: it is not waited for, nor cancelled."""
        self._unfinished.discard(job)

    def put_delta(self, delta: Delta) -> None:
        """Take in a delta. A reader too far behind ends the stream with an error."""
        if self._error is not None or delta.job not in self._unfinished:
            return
        shown, inquiry = self._shown[delta.job], self._inquiries[delta.job]
        inquiry.heard = True
        try:
            new = shown.is_new(delta)
        except GapError as gap:
            self._miss(delta.job, str(gap))
            return
        if not new:
            return
        if inquiry.missing and not shown.has_gap:
            self._found(inquiry)
        if delta.token_ids or delta.text or delta.finish_reason:  # else a worker's word that there is nothing new
            self._put(delta, max(1, len(delta.token_ids)))

    def put_result(self, result: Result) -> None:
        """Take in a terminal Result, once for each job. One that completes a streamed job whose last tokens have not
        come is not taken: it will come again, behind them."""
        shown, inquiry = self._shown[result.job], self._inquiries[result.job]
        if result.job not in self._unfinished or not shown.is_current(result.epoch):
            return
        if result.job in self._streamed and result.outcome == "completed" and not shown.is_complete:
            shown.lack_end()
            self._miss(result.job, "its last ones did not come")
            return
        self._unfinished.discard(result.job)
        if inquiry.missing:
            self._found(inquiry)
        if self._error is None:
            self._put(result, 1)

    def reconnected(self) -> None:
        """Frames may have been lost: ask about every job."""
        now = time.monotonic()
        for job in self._unfinished:
            if self._shown[job].has_begun:
                self._inquiries[job].lost(now, "their connection was lost")
            self._inquiries[job].hurry(now)

    def is_due(self, job: str, now: float) -> bool:
        """Whether to ask the workers about `job` now. Ends the stream where something has been missing for too long."""
        inquiry = self._inquiries[job]
        if self._error is not None or job not in self._unfinished:
            return False
        if inquiry.missing and now - inquiry.missing_since > REPAIR_SECONDS:
            self._give_up(inquiry, gap=self._shown[job].has_gap)
            return False
        return inquiry.is_due(now)

    def fail(self, error: ApiError) -> None:
        """End the stream: what is buffered may still be taken, then `error` is raised. The first error stays. The jobs
        are given up at once: the reader may be stuck in a send to a client that does not read."""
        if self._error is None:
            self._error = error
            self._wakeup.wake()
            self._on_failure(self)

    def close(self) -> None:
        """Nobody takes any more."""
        self._wakeup.close()

    async def take(self, timeout: float | None = None) -> list[Event]:
        """All that has arrived, waiting for the first; [] once every job has ended. Raises TimeoutError after `timeout`
        seconds without anything, ApiError if the stream failed."""
        if not self._events and self._error is None and self._unfinished:
            await self._wakeup.wait(timeout)
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

    def _miss(self, job: str, what: str) -> None:
        inquiry = self._inquiries[job]
        if inquiry.missing:
            return
        self._counters.gaps += 1
        log.warning("job %s has lost tokens on their way here: %s", job, what)
        now = time.monotonic()
        inquiry.lost(now, what)
        inquiry.is_due(now)  # asked by whoever is told now
        self._on_gap(job)

    def _found(self, inquiry: Inquiry) -> None:
        self._counters.repairs += 1
        inquiry.found()

    def _give_up(self, inquiry: Inquiry, *, gap: bool) -> None:
        self._counters.unrepaired += 1
        if gap:
            log.error("tokens lost: %s", inquiry.missing)
            self.fail(ApiError(500, f"The stream lost tokens: {inquiry.missing}.", SERVER, code="stream_gap"))
        else:
            self.fail(broker_unavailable())

    def _put(self, event: Event, tokens: int) -> None:
        self._buffered += tokens
        if self._events and self._buffered > self._limit:
            self._counters.slow_readers += 1
            self._events.clear()
            message = f"The client fell more than {self._limit} tokens behind; the request was cancelled."
            self.fail(ApiError(503, message, SERVER, code="slow_reader"))
            return
        self._events.append(event)
        self._wakeup.wake()
