"""A worker without a model, a broker that fails to order, and short ways to set up a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from api.store import BatchRecord, Store
from broker.base import PUBLISH_TIMEOUT, BodyHandler, Broker, BrokerError, Delivery, Handler, Message, Subscription
from broker.memory import MemoryBroker, MemoryHub
from schemas.messages import Choice, Control, ErrorInfo, Job, Result, Usage, decode, encode
from schemas.topology import CONTROL, RESULTS, RESULTS_KEY, Topology, request_queue
from tests.store.databases import chunks

T = TypeVar("T")

ENDPOINT = "/v1/completions"
MODEL = "tiny"


class StubWorker:
    """Answers batch jobs of MODEL: echoes the prompt; "fail" fails; "hang" waits to be cancelled; "mute" gets no answer
    while `mute` is on.

    `jobs` lists the ids it was sent, repeats included; while `gate` is cleared it holds its answers back.
    """

    def __init__(self, broker: Broker) -> None:
        self.jobs: list[str] = []
        self.last: Job | None = None
        self.cancelled: set[str] = set()
        self.mute = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Condition()
        self._broker = broker

    async def start(self) -> None:
        await self._broker.subscribe(self._on_control, exchange=CONTROL)
        await self._broker.consume(request_queue(MODEL, "batch").name, self._on_job, prefetch=1000)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something that a job or a cancellation changes is so."""
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(reached)

    async def _on_control(self, body: bytes) -> None:
        async with self.changed:
            self.cancelled.add(decode(Control, body).job)
            self.changed.notify_all()

    async def _on_job(self, delivery: Delivery) -> None:
        job = decode(Job, delivery.message.body)
        async with self.changed:
            self.jobs.append(job.id)
            self.last = job
            self.changed.notify_all()
        await self.gate.wait()
        if job.prompt == "hang":
            await self.until(lambda: job.id in self.cancelled)
        if job.prompt != "mute" or not self.mute:
            message = Message(encode(answer(job)), message_id=job.id)
            await self._broker.publish(RESULTS, RESULTS_KEY, message)
        await delivery.ack()


def answer(job: Job) -> Result:
    """The worker's Result."""
    prompt = job.prompt or (job.messages or [{"content": ""}])[-1]["content"]
    common: dict[str, Any] = {"job": job.id, "model": job.model, "owner": job.owner, "job_class": job.job_class}
    if prompt == "fail":
        return Result(outcome="failed", error=ErrorInfo(message="too long", code="context_length_exceeded"), **common)
    if prompt == "hang":
        return Result(outcome="cancelled", **common)
    choices = [Choice(index=0, text=f"{prompt}!", token_ids=[7], finish_reason="stop")] if job.store_output else []
    return Result(outcome="completed", choices=choices, usage=Usage(prompt_tokens=2, completion_tokens=1), **common)


class FaultyBroker:
    """A broker whose next confirmed publishes raise what is in `faults`, and which counts those that went well."""

    def __init__(self, inner: MemoryBroker) -> None:
        self.faults: list[BrokerError] = []
        self.published: list[str | None] = []
        self._inner = inner

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        confirm: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        if confirm and self.faults:
            raise self.faults.pop(0)
        await self._inner.publish(exchange, routing_key, message, confirm=confirm, timeout=timeout)
        if confirm:
            self.published.append(message.message_id)

    async def connect(self) -> None:
        await self._inner.connect()

    async def close(self) -> None:
        await self._inner.close()

    async def declare(self, topology: Topology) -> None:
        await self._inner.declare(topology)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        return await self._inner.consume(queue, handler, prefetch=prefetch)

    async def subscribe(self, handler: BodyHandler, *, exchange: str | None = None, key: str = "") -> Subscription:
        return await self._inner.subscribe(handler, exchange=exchange, key=key)

    async def queue_depth(self, queue: str) -> int:
        return await self._inner.queue_depth(queue)


def line(custom_id: Any, prompt: Any = "hello", **changes: Any) -> dict[str, Any]:
    """One input line; `changes` replace its fields."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | changes


def jsonl(*lines: dict[str, Any] | bytes) -> bytes:
    """Lines of an input file; bytes stand as they are."""
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


async def submit(store: Store, content: bytes, **fields: Any) -> BatchRecord:
    """A batch of an uploaded file."""
    file = await store.files.create(chunks([content]), owner="me", filename="in", purpose="batch", limit=10**9)
    return await store.batches.create("me", input_file_id=file.id, **{"endpoint": ENDPOINT} | fields)


async def until_status(store: Store, batch: BatchRecord, *statuses: str) -> BatchRecord:
    """The batch once it has one of these statuses."""

    async def reached() -> BatchRecord | None:
        record = await store.batches.get("me", batch.id)
        return record if record.status in statuses else None

    return await eventually(reached)


async def eventually(look: Callable[[], Awaitable[T | None]]) -> T:
    """What `look` finds once it finds something."""
    async with asyncio.timeout(60):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.01)


async def read_lines(store: Store, file_id: str | None) -> list[dict[str, Any]]:
    """A result file's lines; none where there is no file."""
    if file_id is None:
        return []
    content = b"".join([chunk async for chunk in store.files.content("me", file_id)])
    return [json.loads(one) for one in content.splitlines()]


@asynccontextmanager
async def running(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a job beside the test; its failure is the test's."""
    task = asyncio.create_task(work())
    try:
        yield task
    finally:
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(outcome, asyncio.CancelledError) and isinstance(outcome, BaseException):
            raise outcome


async def swallow(broker: MemoryBroker, queue: str, count: int) -> list[Message]:
    """Take `count` messages off a queue."""
    taken: asyncio.Queue[Message] = asyncio.Queue()

    async def take(delivery: Delivery) -> None:
        await delivery.ack()
        await taken.put(delivery.message)

    consumer = await broker.consume(queue, take, prefetch=1)
    try:
        async with asyncio.timeout(60):
            return [await taken.get() for _ in range(count)]
    finally:
        await consumer.cancel()


async def connected(hub: MemoryHub) -> MemoryBroker:
    """A broker on this hub."""
    broker = MemoryBroker(hub)
    await broker.connect()
    return broker
