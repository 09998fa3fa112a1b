"""The responses that go on without their client: each is followed here by one task for any number of readers.

A job published elsewhere, or before this process started, is followed too: the worker that has it sends everything from
its beginning to whoever asks. Where no worker answers, the store knows the end, or will.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from api.errors import ApiError, request_timeout, shutting_down
from api.event_log import EventLog
from api.job_stream import Event, JobStream
from api.queue_client import QueueClient
from api.response_api.outputs import RecordedReader
from api.store import NotFound, ResponseRecord, Store, StoreError
from schemas.messages import Choice, Delta, Job, Result

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""A response of which nothing is heard for so long is looked for in the store, and asked for again."""
KEPT_TOKENS = 1 << 20
"""A whole answer, which the model's context bounds."""
LATE = 60.0
"""Seconds after the job's deadline for which its end is waited for."""


class ResponseRuns:
    """Runs of this process by job id."""

    def __init__(self, client: QueueClient, store: Store) -> None:
        self._client = client
        self._store = store
        self._logs: dict[str, EventLog] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Follow no longer, before the client is closed. The jobs go on."""
        for events in self._logs.values():
            events.end(shutting_down())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def find(self, record: ResponseRecord) -> EventLog | None:
        """The events of a response that is followed here."""
        return self._logs.get(record.job_id)

    async def start(self, job: Job, record: ResponseRecord) -> EventLog:
        """Publish the job and follow it. Returns once it is confirmed. Raises ApiError."""
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        events = self._spawn(record, lambda log: self._submitted(job, record, log, accepted))
        await accepted
        return events

    def attach(self, record: ResponseRecord) -> EventLog:
        """The events of a response that has not ended, as far as is known."""
        return self.find(record) or self._spawn(record, lambda log: self._followed(record, log))

    def _spawn(self, record: ResponseRecord, work: Callable[[EventLog], Coroutine[Any, Any, None]]) -> EventLog:
        events = self._logs[record.job_id] = EventLog(KEPT_TOKENS)
        task = asyncio.create_task(self._run(record, events, work(events)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return events

    async def _run(self, record: ResponseRecord, events: EventLog, work: Coroutine[Any, Any, None]) -> None:
        error: ApiError | None = shutting_down()
        try:
            async with asyncio.timeout(max(0.0, record.deadline - time.time()) + LATE):
                await work
            error = None
        except TimeoutError:
            error = request_timeout()
        except ApiError as failure:
            error = failure
        finally:
            events.end(error)
            if self._logs.get(record.job_id) is events:
                del self._logs[record.job_id]

    async def _submitted(
        self, job: Job, record: ResponseRecord, events: EventLog, accepted: asyncio.Future[None]
    ) -> None:
        error = shutting_down()
        try:
            async with self._client.submit(job, keep=True) as stream:
                accepted.set_result(None)
                await self._read(record, stream, events)
        except ApiError as failure:
            error = failure
            raise
        finally:
            if not accepted.done():
                accepted.set_exception(error)

    async def _followed(self, record: ResponseRecord, events: EventLog) -> None:
        job = Job(id=record.job_id, model=record.request["model"], prompt="", stream=True)
        async with self._client.follow(job) as stream:
            await self._read(record, stream, events)

    async def _read(self, record: ResponseRecord, stream: JobStream, events: EventLog) -> None:
        reader = RecordedReader(stream, self._store)
        has_begun = False
        while True:
            try:
                taken = await reader.take(LOOK_SECONDS)
            except TimeoutError:
                taken = await self._stored(record, reader.lengths)
                if not taken and not has_begun:
                    stream.reconnected()
            has_begun = has_begun or bool(taken)
            events.extend(taken)
            if taken and isinstance(taken[-1], Result):
                return

    async def _stored(self, record: ResponseRecord, shown: tuple[int, int]) -> list[Event]:
        """What the store has behind the first `shown` characters of reasoning and text, if the response has ended."""
        try:
            current, result = await self._store.responses.get(record.owner, record.id)
        except NotFound:
            return [_cancelled(record)]
        except StoreError as error:
            log.warning("response %s is not looked for: %s", record.id, error)
            return []
        if current.cancelled_at is not None:
            return [_cancelled(record)]
        if result is None:
            return []
        return [*(_rest(result, choice, shown) for choice in result.choices), result]


def _rest(result: Result, choice: Choice, shown: tuple[int, int]) -> Delta:
    return Delta(
        job=result.job,
        epoch=result.epoch,
        offset=0,
        reasoning=choice.reasoning[shown[0] :],
        text=choice.text[shown[1] :],
        finish_reason=choice.finish_reason,
    )


def _cancelled(record: ResponseRecord) -> Result:
    return Result(job=record.job_id, model=record.request["model"], outcome="cancelled", owner=record.owner)
