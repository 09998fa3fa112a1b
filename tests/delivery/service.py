"""Everything between a client and the ledger in one process: a reader, workers with the real engine, a recorder."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.job_stream import JobStream
from api.jobs.recorder import Recorder
from api.queue_client import QueueClient
from api.store import Store
from api.store.migrate import upgrade
from broker.base import Broker
from broker.memory import MemoryBroker
from schemas.messages import Delta, Job, PositionLogprobs, Result, SamplingParams
from schemas.topology import topology
from tests.delivery.tiny_engine import TinyEngine
from tests.front.harness import MODEL, TOKENIZER, WorkerBroker
from workers.front.text import TextProcessor
from workers.front.worker import Worker

PROMPT = "the quick brown fox"
TIMEOUT = 120.0


@dataclass
class Answer:
    """All that a client was told of one job, choice by choice."""

    texts: list[str]
    tokens: list[list[int]]
    logprobs: list[list[PositionLogprobs]]
    finishes: list[list[str]]
    results: list[Result] = field(default_factory=list)

    @classmethod
    def empty(cls, choices: int) -> Answer:
        return cls([""] * choices, *([[] for _ in range(choices)] for _ in range(3)))

    def take(self, event: Delta | Result) -> None:
        if isinstance(event, Result):
            self.results.append(event)
            for choice in event.choices:
                self.texts[choice.index], self.tokens[choice.index] = choice.text, choice.token_ids
                self.finishes[choice.index] = [choice.finish_reason]
            return
        self.texts[event.choice] += event.text
        self.tokens[event.choice] += event.token_ids
        self.logprobs[event.choice] += event.logprobs or []
        if event.finish_reason is not None:
            self.finishes[event.choice].append(event.finish_reason)

    @property
    def result(self) -> Result:
        (result,) = self.results
        return result


def check_same(answer: Answer, whole: Answer) -> None:
    """The invariant: what came, over whatever deaths, is what comes without them, and is counted right."""
    assert (answer.result.outcome, answer.texts, answer.tokens) == ("completed", whole.texts, whole.tokens)
    assert answer.finishes == whole.finishes
    assert [len(finishes) for finishes in answer.finishes] == [1] * len(whole.texts)
    made = sum(map(len, whole.tokens))
    assert (answer.result.usage.completion_tokens, whole.result.usage.completion_tokens) == (made, made)
    assert answer.result.usage.prompt_tokens == whole.result.usage.prompt_tokens
    for ours, theirs in zip(answer.logprobs, whole.logprobs, strict=True):
        assert [position.sampled.token for position in ours] == [position.sampled.token for position in theirs]
        assert [round(position.sampled.logprob, 3) for position in ours] == [
            round(position.sampled.logprob, 3) for position in theirs
        ]


class Service:
    """Makes workers; runs jobs; says what the ledger in `folder` holds. Without `folder` nothing is recorded."""

    def __init__(self, new_broker: Callable[[str], Broker], folder: Path | None) -> None:
        self._new_broker = new_broker
        self._folder = folder
        self._names = itertools.count(1)
        self._workers: list[tuple[asyncio.Task[None], WorkerBroker]] = []
        self._parts: list[tuple[asyncio.Task[None], Broker]] = []

    async def start(self) -> None:
        self.broker = self._new_broker("reader")
        await self.broker.connect()
        await self.broker.declare(topology((MODEL,)))
        self.client = QueueClient(self.broker)
        await self.client.start()
        if self._folder is not None:
            await self._start_recorder(f"sqlite:///{self._folder / 'headrace.db'}")

    async def _start_recorder(self, url: str) -> None:
        await upgrade(url)
        self.store = Store(url)
        await self.store.open()
        broker = self._new_broker("recorder")
        await broker.connect()
        self.recorder = Recorder(broker, self.store)
        self._parts.append((asyncio.create_task(self.recorder.run()), broker))

    async def close(self) -> None:
        await self.client.close()
        for task, broker in [*self._workers, *self._parts]:
            task.cancel()
            await asyncio.wait([task])
            await broker.close()
        await self.broker.close()
        if self._folder is not None:
            await self.store.close()

    async def worker(
        self, pace: float | None = None, *, resume_timeout: float = 5.0
    ) -> tuple[TinyEngine, WorkerBroker]:
        """Start one; its jobs come at once."""
        name = f"w{next(self._names)}"
        engine, connection = TinyEngine(pace), WorkerBroker(self._new_broker(name))
        await connection.connect()
        text = TextProcessor(TOKENIZER)
        worker = Worker(connection, engine, text, model=MODEL, worker_id=name, resume_timeout=resume_timeout)
        await worker.start()
        self._workers.append((asyncio.create_task(worker.run()), connection))
        await asyncio.sleep(0)
        return engine, connection

    async def kill(self, index: int = 0) -> None:
        """End a worker as the broker sees a dead one."""
        task, connection = self._workers[index]
        connection.lost = True
        await connection.close()
        task.cancel()
        await asyncio.wait([task])

    async def freeze(self, index: int = 0) -> None:
        """What becomes of a worker that stands still until the broker gives it up: its jobs are another's, and it does
        not know. Of the embedded broker only."""
        inner = self._workers[index][1].inner
        assert isinstance(inner, MemoryBroker)
        for queue in inner._transients:
            inner._hub.remove_transient(queue)
        for consumer in inner._consumers:
            consumer.queue.remove_consumer(consumer)
            consumer.queue.give_back(consumer.take_unacked(), requeue=True)

    @asynccontextmanager
    async def asked(self, job: Job) -> AsyncIterator[asyncio.Task[Answer]]:
        """Submit a job; its answer is awaited in the block."""
        async with self.client.submit(job) as stream:
            reading = asyncio.create_task(read(stream, job))
            try:
                yield reading
            finally:
                reading.cancel()

    async def ask(self, job: Job) -> Answer:
        async with self.asked(job) as answer:
            return await answer

    async def shown(self, job: str) -> list[int]:
        """The tokens that have been shown of a job's first choice, once all that is under way has arrived (of the
        embedded broker)."""
        for _ in range(20):
            await asyncio.sleep(0)
        return self.client._streams[job].position(job)[1][0]

    async def ledger(self, job: Job) -> Result:
        """What the ledger holds of a job."""
        async with asyncio.timeout(TIMEOUT):
            while not (totals := await self.store.results.usage("")) or totals[0].jobs == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return await self.store.results.get("", job.id)

    async def recorded(self, count: int) -> None:
        """Wait until the recorder has dealt with so many Results."""
        counts = self.recorder.counts
        async with asyncio.timeout(TIMEOUT):
            while counts.recorded + counts.duplicates + counts.dead < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def read(stream: JobStream, job: Job) -> Answer:
    answer = Answer.empty(job.sampling.n)
    async with asyncio.timeout(TIMEOUT):
        async for event in stream:
            answer.take(event)
    return answer


def job(id: str = "j1", *, stream: bool = True, **sampling: Any) -> Job:
    settings = {"max_tokens": 24, "ignore_eos": True, "temperature": 0.0} | sampling
    return Job(id=id, model=MODEL, prompt=PROMPT, stream=stream, sampling=SamplingParams(**settings))
