"""Recorder and dispatcher on a real RabbitMQ and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from api.jobs.batch_run import BatchSettings
from api.jobs.dispatcher import Dispatcher
from api.jobs.recorder import Recorder
from api.requests import job_from_body
from api.responses import body_from_result
from api.store import Store, StoreUnavailable
from broker.amqp import AmqpBroker
from broker.base import Message
from schemas.messages import encode
from schemas.topology import DEAD, RESULTS, RESULTS_KEY, topology
from tests.jobs.stub import MODEL, StubWorker, eventually, jsonl, line, read_lines, running, submit, until_status
from tests.store.databases import opened_store, result_of

SETTINGS = BatchSettings(window=16, poll=0.02)


@pytest.fixture
async def store(postgres_db_url: str) -> AsyncIterator[Store]:
    async with opened_store(postgres_db_url, time.time) as opened:
        yield opened


@pytest.fixture
async def broker(amqp_vhost_url: str) -> AsyncIterator[AmqpBroker]:
    made = AmqpBroker(amqp_vhost_url, name="jobs")
    await made.connect()
    await made.declare(topology((MODEL,)))
    yield made
    await made.close()


@pytest.fixture
async def worker(amqp_vhost_url: str, broker: AmqpBroker) -> AsyncIterator[StubWorker]:
    connection = AmqpBroker(amqp_vhost_url, name="worker")
    await connection.connect()
    started = StubWorker(connection)
    await started.start()
    yield started
    await connection.close()


def dispatcher(broker: AmqpBroker, store: Store) -> Dispatcher:
    return Dispatcher(broker, store, parse=job_from_body, render=body_from_result, settings=SETTINGS)


async def depth(broker: AmqpBroker, queue: str, count: int) -> None:
    async def reached() -> bool:
        return await broker.queue_depth(queue) == count

    await eventually(reached)


async def test_a_batch_goes_through_two_dispatchers_lives(broker: AmqpBroker, store: Store, worker: StubWorker) -> None:
    lines = [line(f"c{number}", f"p{number}") for number in range(60)]
    lines += [line("failed", "fail"), line("nobody's", body={"model": "unknown", "prompt": "x"})]
    batch = await submit(store, jsonl(*lines))
    async with running(Recorder(broker, store).run):
        async with running(dispatcher(broker, store).run):
            await worker.until(lambda: len(worker.jobs) >= 20)
        async with running(dispatcher(broker, store).run):
            done = await until_status(store, batch, "completed")
    assert (done.total, done.completed, done.failed) == (62, 60, 2)
    output = await read_lines(store, done.output_file_id)
    assert [one["response"]["body"]["choices"][0]["text"] for one in output] == [f"p{number}!" for number in range(60)]
    errors = {one["custom_id"]: one["response"]["status_code"] for one in await read_lines(store, done.error_file_id)}
    assert errors == {"failed": 400, "nobody's": 404}
    assert sum(total.jobs for total in await store.results.usage("me")) == 62


async def test_cancelling_reaches_the_worker(broker: AmqpBroker, store: Store, worker: StubWorker) -> None:
    batch = await submit(store, jsonl(*(line(f"h{number}", "hang") for number in range(20))))
    async with running(Recorder(broker, store).run), running(dispatcher(broker, store).run):
        await worker.until(lambda: len(worker.jobs) == 16)
        await store.batches.cancel("me", batch.id)
        ended = await until_status(store, batch, "cancelled")
    assert (ended.total, ended.completed, ended.failed) == (20, 0, 20)
    assert len(worker.cancelled) == 16


async def test_what_a_stopped_recorder_held_is_recorded_by_the_next(
    broker: AmqpBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        await broker.publish(RESULTS, RESULTS_KEY, Message(encode(result_of(f"j{number}"))))
    await broker.publish(RESULTS, RESULTS_KEY, Message(b"{"))
    reached = asyncio.Event()

    async def away(_: object) -> list[bool]:
        reached.set()
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.results, "record_many", away)
        async with running(Recorder(broker, store).run):
            await reached.wait()
    await depth(broker, RESULTS, 301)
    again = Recorder(broker, store)
    async with running(again.run):
        await depth(broker, DEAD, 1)
        await depth(broker, RESULTS, 0)

        async def recorded() -> bool:
            return again.counts.recorded == 300

        await eventually(recorded)
    assert [total.jobs for total in await store.results.usage()] == [300]
