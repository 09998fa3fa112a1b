"""A worker with its fake engine on an embedded broker, a reader, and the two queues that its work ends in."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from broker.base import Broker, BrokerUnavailable, Delivery, Handler, Message
from schemas.messages import Control, Delta, Frame, Job, Result, ResumeQuery, SamplingParams, Status, decode, encode
from schemas.topology import CONTROL, DEAD, REQUESTS, RESULTS, STATUS, request_key, request_queue, topology
from tests.front import tokenizers
from tests.front.fake_engine import FakeEngine
from workers.front.text import TextProcessor
from workers.front.tools.model_syntax import ModelSyntax
from workers.front.worker import Worker

MODEL = "m"
TOKENIZER = tokenizers.byte_level()
EOS = TOKENIZER.eos_token_id
REPLY = "the quick 🦀 fox, café 👨‍👩‍👧 jumps over the lazy dog"


def ids(text: str) -> list[int]:
    return list(TOKENIZER.backend_tokenizer.encode(text).ids)


def reply_with(text: str) -> Callable[[Sequence[int], int], int]:
    """A script that says `text`, then ends."""
    tokens = [*ids(text), EOS]
    return lambda prompt, position: tokens[min(position, len(tokens) - 1)]


class Reader:
    """Keeps what came of each job, as a client would: drops stale epochs and known offsets, fails on a gap."""

    def __init__(self, broker: Broker, *, answers: bool = True) -> None:
        self.frames: list[Frame] = []
        self.taken: list[Delta] = []
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self.tokens: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self.texts: defaultdict[tuple[str, int], str] = defaultdict(str)
        self.finish: dict[tuple[str, int], str] = {}
        self.results: dict[str, Result] = {}
        self.queries: list[ResumeQuery] = []
        self.answers = answers
        self._broker = broker
        self._changed = asyncio.Event()

    async def start(self) -> str:
        self.queue = (await self._broker.subscribe(self._on_frame)).queue
        return self.queue

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for frames until the condition holds."""
        async with asyncio.timeout(60):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def result(self, job: str) -> Result:
        await self.until(lambda: job in self.results)
        return self.results[job]

    async def say_shown(self, job: str, epoch: int) -> None:
        choices = [choice for name, choice in self.tokens if name == job]
        shown = [list(self.tokens[job, choice]) for choice in range(max(choices, default=-1) + 1)]
        control = Control(kind="resume", job=job, epoch=epoch, shown=shown)
        await self._broker.publish(CONTROL, "", Message(encode(control)), confirm=False)

    async def _on_frame(self, body: bytes) -> None:
        frame = decode(Frame, body)
        self.frames.append(frame)
        for delta in frame.deltas:
            self._take(delta)
        for result in frame.results:
            self.results[result.job] = result
        for query in frame.queries:
            self.queries.append(query)
            self.epochs[query.job] = query.epoch
            if self.answers:
                await self.say_shown(query.job, query.epoch)
        self._changed.set()

    def _take(self, delta: Delta) -> None:
        key = (delta.job, delta.choice)
        known = self.tokens[key]
        if delta.epoch < self.epochs[delta.job] or delta.offset + len(delta.token_ids) < len(known):
            return
        assert delta.offset == len(known), f"gap or overlap: {delta} after {len(known)}"
        known += delta.token_ids
        self.texts[key] += delta.text
        self.taken.append(delta)
        if delta.finish_reason is not None:
            self.finish[key] = delta.finish_reason


class TrackedDelivery:
    """A delivery that says when it is settled."""

    def __init__(self, inner: Delivery, unsettled: set[TrackedDelivery]) -> None:
        self.message, self.delivery_count = inner.message, inner.delivery_count
        self._inner = inner
        self._unsettled = unsettled
        unsettled.add(self)

    async def ack(self) -> None:
        self._unsettled.discard(self)
        await self._inner.ack()

    async def reject(self, *, requeue: bool) -> None:
        self._unsettled.discard(self)
        await self._inner.reject(requeue=requeue)


class WorkerBroker:
    """A worker's connection, which can be `lost`: then nothing gets out any more, or `silent`: then what is not confirmed
    gets lost without an error."""

    def __init__(self, inner: Broker) -> None:
        self.unsettled: set[TrackedDelivery] = set()
        self.lost = self.silent = False
        self.inner = inner
        self.connect, self.close, self.declare = inner.connect, inner.close, inner.declare
        self.subscribe, self.queue_depth = inner.subscribe, inner.queue_depth

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Any:
        return await self.inner.consume(
            queue, lambda delivery: handler(TrackedDelivery(delivery, self.unsettled)), prefetch=prefetch
        )

    async def publish(self, exchange: str, routing_key: str, message: Message, **options: Any) -> None:
        if self.lost:
            raise BrokerUnavailable("the connection is lost")
        if not self.silent or options.get("confirm", True):
            await self.inner.publish(exchange, routing_key, message, **options)


class Sink:
    """Everything that reaches one durable queue."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = asyncio.Event()

    async def handle(self, delivery: Delivery) -> None:
        self.messages.append(delivery.message)
        await delivery.ack()
        self._changed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.messages) < count:
                self._changed.clear()
                await self._changed.wait()

    @property
    def results(self) -> list[Result]:
        return [decode(Result, message.body) for message in self.messages]


class Bench:
    """Client, reader and sinks on one broker; makes workers."""

    def __init__(self, new_broker: Callable[[], Broker]) -> None:
        self.new_broker = new_broker
        self.client = new_broker()
        self.reader = Reader(self.client)
        self.results, self.dead = Sink(), Sink()
        self.statuses: list[Status] = []
        self._names = itertools.count(1)
        self._workers: list[tuple[Worker, asyncio.Task[None], WorkerBroker]] = []

    async def start(self) -> None:
        await self.client.connect()
        await self.client.declare(topology((MODEL,)))
        await self.client.consume(RESULTS, self.results.handle, prefetch=100)
        await self.client.consume(DEAD, self.dead.handle, prefetch=100)
        await self.client.subscribe(self._on_status, exchange=STATUS)
        await self.reader.start()

    async def worker(
        self,
        text: str = REPLY,
        *,
        broker: WorkerBroker | None = None,
        syntax: ModelSyntax | None = None,
        **options: Any,
    ) -> tuple[FakeEngine, Worker]:
        """Start a worker whose model says `text`."""
        engine = FakeEngine(reply_with(text), vocab_size=len(TOKENIZER), eos=EOS)
        connection = broker or WorkerBroker(self.new_broker())
        await connection.connect()
        options = {"resume_timeout": 0.05, "status_interval": 60.0, **options}
        name = f"w{next(self._names)}"
        worker = Worker(connection, engine, TextProcessor(TOKENIZER, syntax), model=MODEL, worker_id=name, **options)
        await worker.start()
        task = asyncio.create_task(worker.run())
        self._workers.append((worker, task, connection))
        await asyncio.sleep(0)
        return engine, worker

    async def kill(self, index: int = 0) -> None:
        """End a worker as the broker sees a dead one: its connection is gone, nothing more is said."""
        _, task, connection = self._workers[index]
        connection.lost = True
        await connection.close()
        connection.unsettled.clear()
        task.cancel()
        await asyncio.wait([task])

    def serving(self, index: int = 0) -> asyncio.Task[None]:
        return self._workers[index][1]

    async def submit(self, job: Job | bytes, *, job_class: str = "interactive") -> None:
        body = job if isinstance(job, bytes) else encode(job)
        key = request_key(MODEL, "batch" if job_class == "batch" else "interactive")
        await self.client.publish(REQUESTS, key, Message(body))

    def job(self, job_id: str = "j1", **fields: Any) -> Job:
        sampling = {"max_tokens": 100, **fields.pop("sampling", {})}
        if "messages" not in fields and "prompt_token_ids" not in fields:
            fields.setdefault("prompt", "hello world")
        fields = {"model": MODEL, "reply_to": self.reader.queue, "stream": True, **fields}
        return Job(id=job_id, sampling=SamplingParams(**sampling), **fields)

    async def control(self, kind: str, job: str = "") -> None:
        message = Message(encode(Control(kind=kind, job=job)))  # type: ignore[arg-type]
        await self.client.publish(CONTROL, "", message, confirm=False)

    @property
    def unsettled(self) -> int:
        """Request deliveries that a worker has and has not acknowledged."""
        return sum(len(connection.unsettled) for _, _, connection in self._workers)

    async def ready(self) -> int:
        """Interactive jobs that no worker has."""
        return await self.client.queue_depth(request_queue(MODEL, "interactive").name)

    async def deliver_in_vain(self, times: int) -> None:
        """Take the first interactive job and give it back, so often."""
        remaining = times
        done = asyncio.Event()

        async def give_back(delivery: Delivery) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                await subscription.cancel()
                done.set()
            await delivery.reject(requeue=True)

        subscription = await self.client.consume(request_queue(MODEL, "interactive").name, give_back, prefetch=1)
        async with asyncio.timeout(60):
            await done.wait()

    async def settle(self) -> None:
        """Let everything that can happen without the engine happen."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for _, task, connection in self._workers:
            task.cancel()
            await asyncio.wait([task])
            await connection.close()
        await self.client.close()

    async def _on_status(self, body: bytes) -> None:
        self.statuses.append(decode(Status, body))
