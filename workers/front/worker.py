"""The worker: consumes the request queues of one model and has its engine run what comes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from broker.base import Broker, BrokerError, Subscription
from schemas.messages import Control, Status, decode
from schemas.topology import CONTROL, request_queue, topology
from workers.front.announce import INTERVAL, Announcer, RateMeter
from workers.front.defaults import NO_DEFAULTS, SamplingDefaults
from workers.front.engine_client import EngineClient
from workers.front.frames import FrameSender
from workers.front.lifecycle import JobLifecycle, Served
from workers.front.limits import Limits
from workers.front.questions import QuestionDesk
from workers.front.results import ResultPublisher
from workers.front.resume import RESUME_TIMEOUT, ResumeDesk
from workers.front.running import RunningJobs
from workers.front.text import TextProcessor
from workers.protocol import Ready

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT = 5.0
"""Seconds for the broker to end one subscription."""


class EngineDiedError(Exception):
    """The engine ended while the worker served; the reason in one line. Its jobs are delivered again."""


def prefetch(max_running: int) -> dict[str, int]:
    """Unacknowledged jobs by class. Interactive: one batch running and one ready to follow. Batch class: enough to
    fill an idle engine and little more, so that other workers get their share."""
    return {"interactive": 2 * max_running, "batch": max_running + max(1, max_running // 4)}


class Worker:
    """Serves `model` from `engine`. `start` loads the engine; `run` serves until `drain`, and closes the engine.

    The broker is connected and closed by the caller, who closes it after `run` has returned or raised.
    """

    def __init__(
        self,
        broker: Broker,
        engine: EngineClient,
        text: TextProcessor,
        *,
        model: str,
        worker_id: str,
        sampling_defaults: SamplingDefaults = NO_DEFAULTS,
        resume_timeout: float = RESUME_TIMEOUT,
        status_interval: float = INTERVAL,
    ) -> None:
        self._broker = broker
        self._engine = engine
        self._text = text
        self._model = model
        self._worker_id = worker_id
        self._defaults = sampling_defaults
        self._created = int(time.time())
        self._frames = FrameSender(broker, worker_id)
        self._results = ResultPublisher(broker)
        self._questions = QuestionDesk(text, self._frames)
        self._resume = ResumeDesk(self._frames, timeout=resume_timeout)
        self._announcer = Announcer(broker, self._status, interval=status_interval)
        self._rate = RateMeter()
        self._subscriptions: list[Subscription] = []
        self._grace = 0.0
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    async def start(self) -> Ready:
        """Load the engine. Raises EngineStartError."""
        self._ready = await self._engine.start()
        ready = self._ready
        self._limits = Limits(ready.max_model_len, ready.vocab_size, ready.embedding_dimensions)
        self._running = RunningJobs(self._engine, self._frames, self._text.vocabulary, self._ready.eos_token_ids)
        served = Served(self._model, self._worker_id, self._limits, self._defaults)
        self._lifecycle = JobLifecycle(served, self._text, self._running, self._frames, self._results, self._resume)
        self._engine.set_handler(self._running.on_step)
        return self._ready

    async def run(self) -> None:
        """Serve until drained. Raises BrokerError where it cannot begin to consume, EngineDiedError."""
        announcing: asyncio.Task[None] | None = None
        try:
            await self._subscribe()
            announcing = asyncio.create_task(self._announcer.run())
            reason = await self._until_stopped()
        finally:
            await self._leave(announcing)
        if reason is not None:
            raise EngineDiedError(reason)

    async def _until_stopped(self) -> str | None:
        """Wait for `drain` (None) or for the engine's end (its reason)."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            awaited: list[asyncio.Future[Any]] = [stopping, self._engine.died]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return self._engine.died.result() if self._engine.died.done() else None

    async def drain(self, grace: float) -> None:
        """Take no more jobs, let those that are here end within `grace` seconds; the rest is delivered again. Returns
        when `run` is done."""
        self._grace = grace
        self._stopping.set()
        await self._stopped.wait()

    async def _subscribe(self) -> None:
        await self._broker.declare(topology((self._model,)))
        self._subscriptions.append(await self._broker.subscribe(self._on_control, exchange=CONTROL))
        limits = prefetch(self._ready.max_running)
        for job_class in ("interactive", "batch"):
            queue = request_queue(self._model, job_class).name
            consumer = await self._broker.consume(queue, self._lifecycle.handle, prefetch=limits[job_class])
            self._subscriptions.append(consumer)

    async def _leave(self, announcing: asyncio.Task[None] | None) -> None:
        """Stop consuming, wait for what runs, give back the rest, end the engine."""
        if announcing is not None:
            announcing.cancel()
        try:
            if not self._engine.died.done():  # else silence says that it crashed and may be back: requests are taken on
                await self._announcer.announce(leaving=True)
            await self._stop_consuming()
            await self._questions.close()
            await self._lifecycle.close(0.0 if self._engine.died.done() else self._grace)
            await self._frames.close()
        finally:
            await self._engine.close()
            self._stopped.set()

    async def _stop_consuming(self) -> None:
        control, consumers = self._subscriptions[:1], self._subscriptions[1:]
        for consumer in [*consumers, *control]:
            try:
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    await consumer.cancel()
            except (BrokerError, TimeoutError) as error:
                logger.warning("consuming %s could not be stopped: %s", consumer.queue, error)

    async def _on_control(self, body: bytes) -> None:
        try:
            control = decode(Control, body)
        except msgspec.MsgspecError as error:
            logger.warning("malformed control message: %s", error)
            return
        if control.kind == "announce":
            await self._announcer.announce()
        elif control.kind == "tokenize":
            if control.worker == self._worker_id and control.question is not None:
                self._questions.ask(control.question, self._limits)
        else:
            self._lifecycle.on_control(control)

    def _status(self, leaving: bool) -> Status:
        running = self._running
        stats = running.stats
        return Status(
            worker=self._worker_id,
            model=self._model,
            max_model_len=self._limits.max_model_len,
            vocab_size=self._limits.vocab_size,
            created=self._created,
            running=stats.running,
            waiting=stats.waiting,
            interactive_waiting=running.interactive_waiting,
            max_running=self._ready.max_running,
            queued_tokens=running.queued_tokens,
            kv_blocks_used=stats.kv_blocks_used,
            kv_blocks_total=self._ready.kv_blocks,
            preemptions=stats.preemptions,
            tokens_per_second=self._rate.observe(running.busy_seconds, running.tokens_made),
            has_chat_template=self._text.has_chat_template,
            sampling_defaults=self._defaults.values,
            embedding_dimensions=self._limits.embedding_dimensions,
            leaving=leaving,
        )
