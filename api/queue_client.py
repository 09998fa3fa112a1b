"""Submits jobs to the request queues and hands their frames to those who wait.

One reply queue for the whole process: a frame holds what one engine step produced for all of this process's jobs. The
queue goes with its connection; the name by which workers reach it stays.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from api.errors import RATE_LIMIT, ApiError, broker_unavailable, model_not_found, shutting_down
from api.job_stream import JobStream
from api.questions import Questions
from api.shown_tokens import ReaderCounters
from api.subscriptions import end
from api.tally import Tally
from broker.base import Broker, BrokerError, Message, NotSent, PublishRejected, Subscription, Unroutable
from schemas.messages import Control, Frame, Job, ResumeQuery, encode
from schemas.topology import CONTROL, REPLIES, REQUESTS, request_key

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
CLOSE_TIMEOUT = 5.0
CANCEL_AGAIN_SECONDS = 1.0
"""Deltas keep coming until a worker has read the cancel: how long to wait before saying it again."""
REMEMBERED_CANCELS = 4096

_decode_frame = msgspec.json.Decoder(Frame).decode


class QueueClient:
    """Runs jobs through the broker. `start` before the first submit, `close` at the end.

        async with client.submit(job) as stream:
            async for event in stream:   # Delta ..., Result
                ...

    Leaving the block early, by whatever way, cancels what has not ended.
    """

    def __init__(self, broker: Broker, *, max_buffered_tokens: int = 16_384) -> None:
        self.counters = ReaderCounters()
        self.reader = f"{REPLIES}.{secrets.token_hex(8)}"
        self.tally = Tally()
        self.questions = Questions(broker, self.reader)
        self._broker = broker
        self._max_buffered_tokens = max_buffered_tokens
        self._streams: dict[str, JobStream] = {}
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._left: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def running_jobs(self) -> int:
        """Jobs submitted here that have not ended."""
        return len(self._streams)

    async def start(self) -> None:
        """Open the reply queue; the topology is declared. Raises BrokerError."""
        self._subscription = await self._broker.subscribe(self._on_frame, exchange=REPLIES, key=self.reader)
        self._watcher = asyncio.create_task(self._watch(self._subscription))

    async def close(self) -> None:
        """Fail the streams still open, cancel their jobs, close the reply queue."""
        for stream in set(self._streams.values()):
            stream.fail(shutting_down())
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
        await end(self._subscription)

    @asynccontextmanager
    async def submit(self, *jobs: Job, keep: bool = False) -> AsyncIterator[JobStream]:
        """Publish `jobs`, confirmed by the broker, and yield the stream of what they produce. With `keep` they go on
        once they are published, whatever becomes of the stream. Raises ApiError: 404 where the model has no queue, 429
        where its queue is full, 503 without a broker."""
        with self._reading(jobs, keep=keep) as stream:
            self.tally.begin(jobs)
            try:
                await self._publish_all(jobs)
                yield stream
            finally:
                self.tally.end(jobs)

    @asynccontextmanager
    async def follow(self, job: Job) -> AsyncIterator[JobStream]:
        """The stream, from its beginning, of a job that was published before and that nobody reads here. It asks for
        the job at once, and goes on asking. The job goes on when the block is left."""
        with self._reading((job,), keep=True) as stream:
            self._ask(job.id)
            yield stream

    async def publish(self, job: Job) -> None:
        """Publish a job that nobody reads, confirmed by the broker. Raises ApiError as `submit`; the job is cancelled
        then, should it have got through."""
        try:
            await self._send(job, None)
        except (Unroutable, PublishRejected, NotSent) as error:
            raise _refusal(error, job.model) from None
        except BrokerError as error:
            log.error("job %s not published: %s", job.id, error)
            self.cancel(job.id)
            raise broker_unavailable() from None

    @contextmanager
    def _reading(self, jobs: Sequence[Job], *, keep: bool) -> Iterator[JobStream]:
        give_up = self._leave if keep else self._give_up
        stream = JobStream(jobs, self._max_buffered_tokens, self.counters, give_up, self._ask)
        for job in jobs:
            self._streams[job.id] = stream
        try:
            yield stream
        finally:
            for job in jobs:
                self._streams.pop(job.id, None)
            stream.close()
            if not stream.failed:
                give_up(stream)

    def _leave(self, stream: JobStream) -> None:
        """Nobody reads these jobs here any more, and they go on."""
        for job_id in stream.unfinished:
            self._left[job_id] = None
            if len(self._left) > REMEMBERED_CANCELS:
                self._left.popitem(last=False)

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

    async def _publish_all(self, jobs: tuple[Job, ...]) -> None:
        published = await asyncio.gather(*(self._publish(job) for job in jobs), return_exceptions=True)
        for outcome in published:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _publish(self, job: Job) -> None:
        try:
            await self._send(job, self.reader)
        except (Unroutable, PublishRejected, NotSent) as error:
            self._streams[job.id].withdraw(job.id)
            raise _refusal(error, job.model) from None
        except BrokerError as error:
            # It may yet be delivered, when nobody waits for it: the cancel that follows from here gets there too.
            log.error("job %s not published: %s", job.id, error)
            raise broker_unavailable() from None

    async def _send(self, job: Job, reader: str | None) -> None:
        body = encode(msgspec.structs.replace(job, reply_to=reader))
        message = Message(body, message_id=job.id, reply_to=reader)
        await self._broker.publish(REQUESTS, request_key(job.model, job.job_class), message)

    async def _on_frame(self, body: bytes) -> None:
        """One frame, in order. Never waits for the broker: what is to be answered is answered beside it."""
        self.counters.frames += 1
        try:
            frame = _decode_frame(body)
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
            self.tally.finished(result)
            if (stream := self._streams.get(result.job)) is not None:
                stream.put_result(result)
        for query in frame.queries:
            self._answer(query)
        for answer in frame.answers:
            self.questions.settle(answer)

    def _cancel_unknown(self, job_id: str) -> None:
        """Deltas for nobody: a cancel was said before any worker held the job, or has not been read yet."""
        if job_id in self._left:
            return
        if time.monotonic() - self._cancelled.get(job_id, -CANCEL_AGAIN_SECONDS) >= CANCEL_AGAIN_SECONDS:
            self.counters.unknown_jobs += 1
            self.cancel(job_id)

    def _answer(self, query: ResumeQuery) -> None:
        stream = self._streams.get(query.job)
        if stream is None or query.job not in stream.unfinished:
            if query.job not in self._left:
                self.cancel(query.job)
            return
        self.counters.resumes += 1
        shown = stream.answer(query.job, query.epoch)
        log.info("job %s resumes after %s tokens", query.job, [len(tokens) for tokens in shown])
        answer = Control(kind="resume", job=query.job, epoch=query.epoch, shown=shown, reply_to=self.reader)
        self._spawn(self._control(answer))

    async def _control(self, control: Control) -> None:
        try:
            await self._broker.publish(CONTROL, "", Message(encode(control)), confirm=False)
        except BrokerError as error:
            log.warning("control %s for job %s not sent: %s", control.kind, control.job, error)

    def _ask(self, job_id: str) -> None:
        if (control := self._question(job_id)) is not None:
            self._spawn(self._control(control))

    def _question(self, job_id: str) -> Control | None:
        """What this reader has of a job, and so what it lacks; None where nobody waits for the job any more."""
        stream = self._streams.get(job_id)
        if stream is None:
            return None
        epoch, shown = stream.position(job_id)
        return Control(kind="resume", job=job_id, epoch=epoch, shown=shown, reply_to=self.reader)

    async def _watch(self, subscription: Subscription) -> None:
        """Ask about what has been quiet or incomplete for too long, and about everything after a lost connection: frames
        for its reply queue are gone."""
        queue = subscription.queue
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if subscription.queue != queue:
                queue = subscription.queue
                self.counters.lost_reply_queues += 1
                for stream in set(self._streams.values()):
                    stream.reconnected()
            now = time.monotonic()
            for job_id, stream in list(self._streams.items()):
                if stream.is_due(job_id, now) and (question := self._question(job_id)) is not None:
                    await self._control(question)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refusal(error: BrokerError, model: str) -> ApiError:
    """Why the broker did not take a job."""
    match error:
        case Unroutable():
            return model_not_found(model)
        case PublishRejected():
            return queue_full(model)
    return broker_unavailable()


def queue_full(model: str) -> ApiError:
    """The broker refused the publish: the backstop behind admission control."""
    message = f"The queue of the model '{model}' is full. Try again later."
    return ApiError(429, message, RATE_LIMIT, code="queue_full", retry_after=10)
