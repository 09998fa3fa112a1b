"""Submits jobs to the request queues and hands their frames to those who wait.

One reply queue for the whole process: a frame holds what one engine step produced for all of this process's jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from api.errors import RATE_LIMIT, SERVER, ApiError, model_not_found
from api.job_stream import JobStream, ReaderCounters
from api.subscriptions import end
from broker.base import Broker, BrokerError, Message, PublishRejected, Subscription, Unroutable
from schemas.messages import Control, Frame, Job, ResumeQuery, decode, encode
from schemas.topology import CONTROL, REQUESTS, request_key

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
CLOSE_TIMEOUT = 5.0
CANCEL_AGAIN_SECONDS = 1.0
"""Deltas keep coming until a worker has read the cancel: how long to wait before saying it again."""
REMEMBERED_CANCELS = 4096


class QueueClient:
    """Runs jobs through the broker. `start` before the first submit, `close` at the end.

        async with client.submit(job) as stream:
            async for event in stream:   # Delta ..., Result
                ...

    Leaving the block early, by whatever way, cancels what has not ended.
    """

    def __init__(self, broker: Broker, *, max_buffered_tokens: int = 16_384) -> None:
        self.counters = ReaderCounters()
        self._broker = broker
        self._max_buffered_tokens = max_buffered_tokens
        self._streams: dict[str, JobStream] = {}
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def running_jobs(self) -> int:
        """Jobs submitted here that have not ended."""
        return len(self._streams)

    async def start(self) -> None:
        """Open the reply queue. Raises BrokerError."""
        self._subscription = await self._broker.subscribe(self._on_frame)
        self._watcher = asyncio.create_task(self._watch_reply_queue(self._subscription))

    async def close(self) -> None:
        """Fail the streams still open, cancel their jobs, close the reply queue."""
        for stream in set(self._streams.values()):
            stream.fail(ApiError(503, "The service is shutting down.", SERVER, code="shutting_down"))
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
        await end(self._subscription)

    @asynccontextmanager
    async def submit(self, *jobs: Job) -> AsyncIterator[JobStream]:
        """Publish `jobs`, confirmed by the broker, and yield the stream of what they produce. Raises ApiError: 404
        where the model has no queue, 429 where its queue is full, 503 without a broker."""
        stream = JobStream(jobs, self._max_buffered_tokens, self.counters, self._give_up)
        stream.reply_to = self._reply_queue()
        for job in jobs:
            self._streams[job.id] = stream
        try:
            await self._publish_all(jobs, stream.reply_to)
            yield stream
        finally:
            for job in jobs:
                self._streams.pop(job.id, None)
            if not stream.failed:
                self._give_up(stream)

    def _give_up(self, stream: JobStream) -> None:
        for job_id in stream.unfinished:
            self.cancel(job_id)

    def cancel(self, job_id: str) -> None:
        """Tell every worker to drop the job, at once and without waiting: a caller that is itself being cancelled could
        not wait."""
        self._cancelled[job_id] = time.monotonic()
        self._cancelled.move_to_end(job_id)
        if len(self._cancelled) > REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)
        self._spawn(self._control(Control(kind="cancel", job=job_id)))

    def _reply_queue(self) -> str:
        assert self._subscription is not None, "start the client before submitting"
        return self._subscription.queue

    async def _publish_all(self, jobs: tuple[Job, ...], reply_to: str) -> None:
        published = await asyncio.gather(*(self._publish(job, reply_to) for job in jobs), return_exceptions=True)
        for outcome in published:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _publish(self, job: Job, reply_to: str) -> None:
        body = encode(msgspec.structs.replace(job, reply_to=reply_to))
        message = Message(body, message_id=job.id, reply_to=reply_to)
        try:
            await self._broker.publish(REQUESTS, request_key(job.model, job.job_class), message)
        except Unroutable:
            raise model_not_found(job.model) from None
        except PublishRejected:
            raise queue_full(job.model) from None
        except BrokerError as error:
            log.error("job %s not published: %s", job.id, error)
            raise broker_unavailable() from None

    async def _on_frame(self, body: bytes) -> None:
        """One frame, in order. Never waits for the broker: what is to be answered is answered beside it."""
        self.counters.frames += 1
        try:
            frame = decode(Frame, body)
        except msgspec.MsgspecError as error:
            self.counters.malformed_frames += 1
            log.error("malformed frame dropped: %s", error)
            return
        for delta in frame.deltas:
            stream = self._streams.get(delta.job)
            if stream is None:
                self._cancel_unknown(delta.job)
            else:
                stream.put_delta(delta)
        for result in frame.results:
            if (stream := self._streams.get(result.job)) is not None:
                stream.put_result(result)
        for query in frame.queries:
            self._answer(query)

    def _cancel_unknown(self, job_id: str) -> None:
        """Deltas for nobody: a cancel was said before any worker held the job, or has not been read yet."""
        if time.monotonic() - self._cancelled.get(job_id, -CANCEL_AGAIN_SECONDS) >= CANCEL_AGAIN_SECONDS:
            self.counters.unknown_jobs += 1
            self.cancel(job_id)

    def _answer(self, query: ResumeQuery) -> None:
        stream = self._streams.get(query.job)
        if stream is None or query.job not in stream.unfinished:
            self.cancel(query.job)
            return
        self.counters.resumes += 1
        shown = stream.shown(query.job, query.epoch)
        log.info("job %s resumes after %s tokens", query.job, [len(tokens) for tokens in shown])
        self._spawn(self._control(Control(kind="resume", job=query.job, epoch=query.epoch, shown=shown)))

    async def _control(self, control: Control) -> None:
        try:
            await self._broker.publish(CONTROL, "", Message(encode(control)), confirm=False)
        except BrokerError as error:
            log.warning("control %s for job %s not sent: %s", control.kind, control.job, error)

    async def _watch_reply_queue(self, subscription: Subscription) -> None:
        """After a reconnection the reply queue has another name, and frames sent to the old one are lost: the streams
        that waited on it fail at once instead of waiting for ever."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            name = subscription.queue
            for stream in {stream for stream in self._streams.values() if stream.reply_to != name}:
                self.counters.lost_reply_queues += 1
                stream.fail(broker_unavailable())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def broker_unavailable() -> ApiError:
    """No connection to the broker, no confirmation in time, or a reply queue lost with its connection."""
    message = "The message broker is not available. Try again in a moment."
    return ApiError(503, message, SERVER, code="broker_unavailable", retry_after=2)


def queue_full(model: str) -> ApiError:
    """The broker refused the publish: the backstop behind admission control."""
    message = f"The queue of the model '{model}' is full. Try again later."
    return ApiError(429, message, RATE_LIMIT, code="queue_full", retry_after=10)
