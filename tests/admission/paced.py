"""A worker that serves at a fixed rate and says so, on any broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.base import Broker, Delivery, Message
from schemas.messages import Choice, Frame, Job, Result, Status, Usage, decode, encode
from schemas.topology import RESULTS, RESULTS_KEY, STATUS, reply_address, request_queue, topology
from workers.front.announce import RateMeter

TOKENS = 20
SLOTS = 8
STATUS_SECONDS = 0.2


class PacedWorker:
    """`rate` jobs a second, SLOTS at a time, of the model "paced". `served` are the ids of the jobs that have ended."""

    def __init__(self, broker: Broker, rate: float) -> None:
        self.served: list[str] = []
        self.longest = 0
        self._broker = broker
        self._seconds = SLOTS / rate
        self._slots = asyncio.Semaphore(SLOTS)
        self._here = 0
        self._begun: dict[str, float] = {}
        self._meter = RateMeter()
        self._busy = 0.0
        self._seen = time.monotonic()

    async def start(self) -> None:
        await self._broker.declare(topology(("paced",)))
        await self._broker.consume(request_queue("paced", "interactive").name, self._on_job, prefetch=2 * SLOTS)
        await self.announce()

    async def announce_for_ever(self) -> None:
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            await self.announce()
            depth = await self._broker.queue_depth(request_queue("paced", "interactive").name)
            self.longest = max(self.longest, depth)

    async def announce(self) -> None:
        status = Status(
            worker="paced-1",
            model="paced",
            max_model_len=512,
            vocab_size=100,
            running=min(self._here, SLOTS),
            waiting=max(0, self._here - SLOTS),
            interactive_waiting=max(0, self._here - SLOTS),
            max_running=SLOTS,
            tokens_per_second=self._rate(),
        )
        await self._broker.publish(STATUS, "", Message(encode(status)), confirm=False)

    def _rate(self) -> float:
        """As a worker has it that makes its tokens one by one."""
        now = time.monotonic()
        self._busy += now - self._seen if self._here else 0.0
        self._seen = now
        begun = sum(min(1.0, (now - at) / self._seconds) for at in self._begun.values())
        return self._meter.observe(self._busy, round((len(self.served) + begun) * TOKENS))

    async def _on_job(self, delivery: Delivery) -> None:
        job = decode(Job, delivery.message.body)
        self._here += 1
        async with self._slots:
            self._begun[job.id] = time.monotonic()
            await asyncio.sleep(self._seconds)
        self._here -= 1
        del self._begun[job.id]
        self.served.append(job.id)
        usage = Usage(prompt_tokens=1, completion_tokens=TOKENS)
        choice = Choice(index=0, text="x", token_ids=[0] * TOKENS, finish_reason="stop")
        result = Result(job=job.id, model="paced", outcome="completed", usage=usage, choices=[choice])
        await self._broker.publish(RESULTS, RESULTS_KEY, Message(encode(result), message_id=job.id))
        assert job.reply_to is not None
        frame = Message(encode(Frame(worker="paced-1", results=[result])))
        await self._broker.publish(*reply_address(job.reply_to), frame, confirm=False)
        await delivery.ack()


@asynccontextmanager
async def paced(broker: Broker, rate: float) -> AsyncIterator[PacedWorker]:
    """A PacedWorker for the duration of the block."""
    worker = PacedWorker(broker, rate)
    await worker.start()
    announcing = asyncio.create_task(worker.announce_for_ever())
    try:
        yield worker
    finally:
        announcing.cancel()
        await asyncio.wait([announcing])
