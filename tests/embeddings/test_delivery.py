"""Embedding jobs over the deaths of their workers: one Result, one line in the ledger, and nothing left running."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.job_stream import Event
from broker.memory import MemoryBroker, MemoryHub
from schemas.messages import Choice, Job, Result, Usage
from tests.delivery.service import TIMEOUT, Service
from tests.front.fake_engine import FakeEngine
from tests.front.harness import EOS, MODEL, TOKENIZER, Bench, WorkerBroker, ids
from workers.front import frames
from workers.front.ended import EndedJobs
from workers.front.job_run import JobRun
from workers.front.running import PRIORITY
from workers.front.text import TextProcessor
from workers.front.worker import Worker
from workers.protocol import EngineStats, Ready, StepOutput, TokenOutput

TEXTS = ["hello world", "the quick brown fox", "a", "b b", "c"]
STATS = EngineStats(0, 0, 0, 0, 0, 0, 0)


class VectorEngine(FakeEngine):
    """Makes of each input its length and its first token, and zeros; one input a step."""

    def __init__(self, dimensions: int = 2) -> None:
        self.dimensions = dimensions
        super().__init__(lambda prompt, position: 0, vocab_size=len(TOKENIZER), eos=EOS)

    async def start(self) -> Ready:
        await super().start()
        return Ready(200, len(TOKENIZER), 0, 0, 4, [], embedding_dimensions=self.dimensions)

    async def step(self, count: int = 1) -> None:
        for _ in range(count):
            request = next(iter(self.running.values())).request
            del self.running[request.id]
            error, self.fail_next = self.fail_next, None
            made = None if error else vector(request.prompt_token_ids, self.dimensions)
            self._handler(StepOutput([TokenOutput(request.id, [], "stop", vector=made, error=error)], STATS))
            await asyncio.sleep(0)


def vector(token_ids: list[int], dimensions: int = 2) -> bytes:
    return array("f", [len(token_ids), token_ids[0], *[0.0] * (dimensions - 2)]).tobytes()


WANTED = [vector(ids(text)) for text in TEXTS]
TOKENS = sum(len(ids(text)) for text in TEXTS)


class EmbeddingService(Service):
    @asynccontextmanager
    async def embedded(self, job: Job) -> AsyncIterator[asyncio.Task[list[Event]]]:
        """Submit a job; its Result is awaited in the block."""
        async with self.client.submit(job) as stream:
            reading = asyncio.create_task(stream.take(TIMEOUT))
            yield reading
            reading.cancel()

    async def start_worker(self, dimensions: int = 2) -> VectorEngine:
        name = f"w{next(self._names)}"
        engine, connection = VectorEngine(dimensions), WorkerBroker(self._new_broker(name))
        await connection.connect()
        worker = Worker(connection, engine, TextProcessor(TOKENIZER), model=MODEL, worker_id=name)
        await worker.start()
        self._workers.append((asyncio.create_task(worker.run()), connection))
        await asyncio.sleep(0)
        return engine


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[EmbeddingService]:
    hub = MemoryHub()
    made = EmbeddingService(lambda _: MemoryBroker(hub), tmp_path)
    await made.start()
    yield made
    await made.close()


def embedding_job(**fields: Any) -> Job:
    return Job(id="j1", model=MODEL, inputs=list(TEXTS), **fields)


def check(events: list[Event]) -> None:
    (result,) = events
    assert isinstance(result, Result)
    assert result.outcome == "completed"
    assert [choice.embedding for choice in result.choices] == WANTED
    assert result.usage == Usage(prompt_tokens=TOKENS)


@pytest.mark.parametrize("zombie", [False, True], ids=["killed", "zombie"])
async def test_a_worker_dies_in_the_middle(service: EmbeddingService, zombie: bool) -> None:
    asked = embedding_job(store_output=True)
    first = await service.start_worker()
    async with service.embedded(asked) as answer:
        await first.until_running(5)
        await first.step(3)
        await (service.freeze() if zombie else service.kill())
        second = await service.start_worker()
        await second.until_running(5)
        if zombie:
            await first.play()
        await second.play()
        check(await answer)
    recorded = await service.ledger(asked)
    assert [choice.embedding for choice in recorded.choices] == WANTED
    (total,) = await service.store.results.usage("")
    assert (total.jobs, total.prompt_tokens, total.completion_tokens) == (1, TOKENS, 0)


async def test_who_leaves_frees_the_engine(service: EmbeddingService) -> None:
    engine = await service.start_worker()
    async with service.embedded(embedding_job()):
        await engine.until_running(5)
        await engine.step(2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not engine.running
    assert len(engine.aborted) == 3
    assert (await service.ledger(embedding_job())).outcome == "cancelled"


async def test_an_input_that_fails_fails_the_job(service: EmbeddingService) -> None:
    engine = await service.start_worker()
    engine.fail_next = "no memory"
    async with service.embedded(embedding_job()) as answer:
        await engine.until_running(5)
        await engine.step()
        (result,) = await answer
    assert (result.outcome, result.error and result.error.message, result.choices) == ("failed", "no memory", [])
    assert not engine.running


async def test_only_inputs_are_taken(service: EmbeddingService) -> None:
    await service.start_worker()
    async with service.embedded(Job(id="j1", model=MODEL, messages=[{"role": "user", "content": "a"}])) as answer:
        (result,) = await answer
    assert (result.outcome, result.error and result.error.code) == ("failed", "unsupported_model")


async def test_a_model_that_makes_text_takes_no_inputs(bench: Bench) -> None:
    await bench.worker()
    await bench.submit(Job(id="j1", model=MODEL, inputs=["a"], reply_to=bench.reader.queue))
    result = await bench.reader.result("j1")
    assert (result.outcome, result.error and result.error.code) == ("failed", "unsupported_model")


async def test_batch_work_is_behind(service: EmbeddingService) -> None:
    engine = await service.start_worker()
    async with service.embedded(embedding_job(job_class="batch", priority=-5)):
        await engine.until_running(5)
    assert {request.priority for request in engine.added} == {PRIORITY["batch"] - 5}


async def test_large_results_are_frames_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = frames.FrameSender(bench.client, "w")
    monkeypatch.setattr(frames, "MAX_VECTOR_BYTES", 100)
    for name, size in (("a", 60), ("b", 40), ("c", 1), ("d", 500)):
        sender.post_result(bench.reader.queue, result(name, size))
    await sender.close()
    await bench.reader.until(lambda: len(bench.reader.results) == 4)
    sent = [[one.job for one in frame.results] for frame in bench.reader.frames]
    assert sent == [["a", "b"], ["c"], ["d"]]


def test_ended_jobs_are_kept_by_the_size_of_their_vectors() -> None:
    ended = EndedJobs(kept_tokens=100)
    for name in ("a", "b", "c"):
        ended.add(run_of(name), result(name, 2000))
    assert [ended.get(name) is not None for name in ("a", "b", "c")] == [False, True, True]


def result(name: str, size: int) -> Result:
    choice = Choice(index=0, text="", token_ids=[], finish_reason="stop", embedding=b"\0" * size)
    return Result(job=name, model=MODEL, outcome="completed", choices=[choice])


def run_of(name: str) -> JobRun:
    loop = asyncio.new_event_loop()
    run = JobRun(Job(id=name, model=MODEL, inputs=["a"]), None, 0, False, loop.create_future(), loop.create_future())
    loop.close()
    return run
