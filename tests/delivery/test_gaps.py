"""What gets lost between a worker and a reader comes after all, once, whatever it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import api.queue_client
import api.shown_tokens
from broker.memory import MemoryBroker, _TransientQueue
from schemas.messages import Job, Result, Usage
from tests.delivery.conftest import undisturbed
from tests.delivery.service import Answer, Service, check_same, job
from workers.front.ended import EndedJobs
from workers.front.job_run import JobRun


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.queue_client, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(api.shown_tokens, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(api.shown_tokens, "FIRST_PAUSE", 0.05)


def reply_queue(service: Service) -> _TransientQueue:
    assert isinstance(service.broker, MemoryBroker)
    return next(queue for queue in service.broker._transients if queue.name == service.client._subscription.queue)  # type: ignore[union-attr]


def lose_reply_queue(service: Service) -> None:
    """As with its connection: nothing reaches the reader from now on."""
    assert isinstance(service.broker, MemoryBroker)
    queue = reply_queue(service)
    for bound in service.broker._hub._bindings.values():
        for names in bound.values():
            if queue.name in names:
                names.remove(queue.name)
    del service.broker._hub._queues[queue.name]


def open_reply_queue(service: Service) -> None:
    """As after the reconnection: another queue, under the same name for workers."""
    assert isinstance(service.broker, MemoryBroker)
    queue = reply_queue(service)
    queue.name += "-again"
    service.broker._hub.add_transient(queue, api.queue_client.REPLIES, service.client.reader)


@pytest.mark.parametrize("asked", [job(), job(n=2, temperature=1.0, seed=5)], ids=["one", "two choices"])
async def test_frames_lost_in_mid_stream(service: Service, asked: Job) -> None:
    engine, connection = await service.worker()
    async with service.asked(asked) as answer:
        await engine.until_added(asked.sampling.n)
        await engine.step(5)
        connection.silent = True
        await engine.step(6)
        connection.silent = False
        await engine.step(3)
        await until(lambda: service.client.counters.repairs == 1)
        await engine.play()
        check_same(await answer, await undisturbed(asked))
    assert service.client.counters.gaps == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_is_lost(service: Service, whole: Answer, stream: bool) -> None:
    """No frame follows that would tell: the reader asks because it is quiet. The job has ended by then."""
    asked = job(stream=stream)
    engine, connection = await service.worker()
    async with service.asked(asked) as answer:
        await engine.until_added(1)
        await engine.step(20)
        connection.silent = True
        await engine.play()
        assert (await service.ledger(asked)).outcome == "completed"
        assert not answer.done()
        connection.silent = False
        check_same(await answer, whole)


@pytest.mark.parametrize("lost_at", [0, 1, 9, 21], ids=["queued", "first token", "in the middle", "at the end"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_reply_queue_is_lost(service: Service, whole: Answer, stream: bool, lost_at: int) -> None:
    """And comes back under another name, when the job has ended meanwhile or goes on."""
    asked = job(stream=stream)
    async with service.asked(asked) as answer:
        if lost_at == 0:
            lose_reply_queue(service)
            open_reply_queue(service)
        engine, _ = await service.worker()
        await engine.until_added(1)
        if lost_at:
            await engine.step(lost_at)
            lose_reply_queue(service)
            await engine.step(3)
            open_reply_queue(service)
        await engine.play()
        check_same(await answer, whole)
    await until(lambda: service.client.counters.lost_reply_queues == 1)
    assert len(engine.added) == 1


async def test_worker_and_reply_queue_are_lost_together(service: Service, whole: Answer) -> None:
    """The second worker's question reaches nobody, so it begins at the beginning, for nobody; when the reader is back it
    goes on behind what was shown."""
    first, _ = await service.worker()
    async with service.asked(job()) as answer:
        await first.until_added(1)
        await first.step(12)
        shown = await service.shown("j1")
        lose_reply_queue(service)
        await service.kill()
        second, _ = await service.worker(resume_timeout=0.01)
        await second.until_added(1)
        assert second.added[0].output_token_ids == []
        await second.step(4)
        open_reply_queue(service)
        await second.until_added(2)
        assert second.added[1].output_token_ids == shown == whole.tokens[0][: len(shown)]
        await second.play()
        check_same(await answer, whole)


async def test_a_quiet_reader_that_lacks_nothing_changes_nothing(service: Service, whole: Answer) -> None:
    engine, _ = await service.worker()
    async with service.asked(job()) as answer:
        await engine.until_added(1)
        await engine.step(6)
        await asyncio.sleep(0.15)  # longer than it takes to ask
        await engine.play()
        check_same(await answer, whole)
    assert (service.client.counters.gaps, len(engine.added)) == (0, 1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_has_ended_is_kept_within_bounds() -> None:
    kept = EndedJobs(kept_tokens=100)
    usage = Usage(prompt_tokens=15, completion_tokens=5)
    for number in range(10):
        run = JobRun.begin(job(f"j{number}"), "reader", 0)
        kept.add(run, Result(job=run.job.id, model="m", outcome="completed", usage=usage))
    assert [kept.get(f"j{number}") is not None for number in range(10)] == [False] * 5 + [True] * 5
