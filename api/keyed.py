"""Completions with an Idempotency-Key: one request, however often and wherever it comes.

The first runs; its jobs go on when its client leaves. The same again attaches to the run, if that is in this process, or
gets the stored answer, if it has ended; in between, at another process, it is told to come again. What was not accepted
frees its key, and so does what was cancelled, since nobody has an answer of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from api.errors import ApiError, request_timeout, shutting_down
from api.event_log import EventLog, JobSource, LogSource, log_of
from api.idempotency import in_progress, key_reused
from api.job_stream import JobStream
from api.queue_client import QueueClient
from api.store import KeyRecord, NotFound, Store, StoreError
from schemas.messages import Job, Result

log = logging.getLogger(__name__)

LINGER = 10.0
"""Seconds for which an ended run can be attached to: its Result is on its way to the store."""

MakeJobs = Callable[[str], list[Job]]


@dataclass(frozen=True, slots=True)
class Opened:
    """How a request is answered: from `source`, under the name `job_id`. `is_replay`: it came before."""

    source: JobSource
    job_id: str
    jobs: list[Job]
    is_replay: bool


class KeyedRequests:
    """The runs of this process, and the way to those of others through the store. `timeout` bounds a run, in seconds."""

    def __init__(self, client: QueueClient, store: Store, timeout: float) -> None:
        self._client = client
        self._store = store
        self._timeout = timeout
        self._runs: dict[tuple[str, str], EventLog] = {}
        self._live: dict[str, tuple[KeyRecord, JobStream, EventLog]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Follow the runs no longer, before the client is closed, which would cancel them. Their jobs go on, and their
        answers go to the store."""
        for record, stream, events in self._live.values():
            events.end(shutting_down())
            for job in record.job_ids:
                stream.withdraw(job)

    async def open(
        self, owner: str, key: str, fingerprint: str, make: MakeJobs, admit: Callable[[list[Job]], None]
    ) -> Opened:
        """The answer's source. `make` makes the jobs of a job id; `admit` raises ApiError where new ones are refused.
        Raises ApiError 409 where the key belongs to another request or to a run out of reach, StoreError."""
        record = await self._store.keys.get(owner, key)
        if record is not None and (opened := await self._again(record, fingerprint, make)) is not None:
            return opened
        job_id = secrets.token_hex(16)
        admit(jobs := make(job_id))
        record, is_mine = await self._store.keys.claim(owner, key, fingerprint, job_id, jobs=len(jobs))
        if not is_mine:
            opened = await self._again(record, fingerprint, make)
            if opened is None:
                raise in_progress()
            return opened
        jobs = make(record.object_id)
        return Opened(LogSource(self._start(record, jobs)), record.object_id, jobs, is_replay=False)

    async def _again(self, record: KeyRecord, fingerprint: str, make: MakeJobs) -> Opened | None:
        """The source for a request that came before; None where it has to run anew."""
        if record.fingerprint != fingerprint:
            raise key_reused()
        jobs = make(record.object_id)
        events = self._runs.get((record.owner, record.key))
        if events is None or not events.is_whole:
            results = await self._stored(record)
            if results is None:
                raise in_progress()
            if any(result.outcome == "cancelled" for result in results):
                await self._store.keys.release(record)
                return None
            events = log_of(results, stream=jobs[0].stream)
        return Opened(LogSource(events), record.object_id, jobs, is_replay=True)

    async def _stored(self, record: KeyRecord) -> list[Result] | None:
        """The Results of all its jobs, or None while one is missing."""
        try:
            return [await self._store.results.get(record.owner, job) for job in record.job_ids]
        except NotFound:
            return None

    def _start(self, record: KeyRecord, jobs: Sequence[Job]) -> EventLog:
        events = self._runs[record.owner, record.key] = EventLog()
        task = asyncio.create_task(self._run(record, jobs, events))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return events

    async def _run(self, record: KeyRecord, jobs: Sequence[Job], events: EventLog) -> None:
        error: ApiError | None = shutting_down()
        try:
            async with asyncio.timeout(self._timeout):
                await self._follow(record, jobs, events)
            error = None
        except TimeoutError:
            error = request_timeout()
        except ApiError as failure:
            error = failure
        finally:
            events.end(error)
            asyncio.get_running_loop().call_later(0 if error else LINGER, self._forget, record, events)

    async def _follow(self, record: KeyRecord, jobs: Sequence[Job], events: EventLog) -> None:
        is_accepted = False
        try:
            kept = [msgspec.structs.replace(job, store_output=True) for job in jobs]
            async with self._client.submit(*kept) as stream:
                is_accepted = True
                self._live[record.object_id] = (record, stream, events)
                accepting = asyncio.create_task(self._accept(record))
                try:
                    while taken := await stream.take():
                        events.extend(taken)
                finally:
                    del self._live[record.object_id]
                    await accepting
        except ApiError:
            if not is_accepted:
                await self._release(record)
            raise

    async def _accept(self, record: KeyRecord) -> None:
        """Should it fail, the claim lapses, and the same request is run again under the same ids: it counts once."""
        try:
            await self._store.keys.accept(record)
        except StoreError as error:
            log.warning("idempotency key of %s not kept: %s", record.object_id, error)

    async def _release(self, record: KeyRecord) -> None:
        try:
            await self._store.keys.release(record)
        except StoreError as error:
            log.warning("idempotency key of %s is free only when its claim lapses: %s", record.object_id, error)

    def _forget(self, record: KeyRecord, events: EventLog) -> None:
        if self._runs.get((record.owner, record.key)) is events:
            del self._runs[record.owner, record.key]
