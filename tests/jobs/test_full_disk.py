"""The store's disk is full: what was accepted waits, what is new is refused, and all goes on when there is room again."""

from __future__ import annotations

import asyncio

import pytest

from api.jobs.recorder import Recorder
from api.store import Store, StoreUnavailable
from broker.memory import MemoryBroker
from schemas.topology import RESULTS
from tests.jobs.stub import StubWorker, eventually, jsonl, line, read_lines, running, submit, until_status
from tests.jobs.test_dispatcher import counts, jobs
from tests.jobs.test_recorder import publish, until_settled
from tests.store.databases import result_of
from tests.store.full_disk import full

RESULTS_SENT = 100
LARGE = "x" * 8000


async def test_results_wait_and_are_recorded_once_there_is_room(
    broker: MemoryBroker, store: Store, database_url: str
) -> None:
    recorder = Recorder(broker, store)
    async with full(database_url):
        await publish(broker, *(result_of(f"j{number}", text=LARGE) for number in range(RESULTS_SENT)))
        async with running(recorder.run):

            async def tried() -> bool:
                return recorder.counts.failures >= 2

            await eventually(tried)
        assert (recorder.counts.recorded, recorder.counts.dead) == (0, 0)
        assert await broker.queue_depth(RESULTS) == RESULTS_SENT  # given back when it stopped
    again = Recorder(broker, store)
    async with running(again.run):
        await until_settled(again, RESULTS_SENT)
    assert (again.counts.recorded, again.counts.duplicates, again.counts.dead) == (RESULTS_SENT, 0, 0)
    assert (await store.results.get("me", "j7")).choices[0].text == LARGE
    assert (await store.results.usage("me"))[0].jobs == RESULTS_SENT


async def test_a_recorder_goes_on_without_a_restart(broker: MemoryBroker, store: Store, database_url: str) -> None:
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        async with full(database_url):
            await publish(broker, *(result_of(f"j{number}", text=LARGE) for number in range(RESULTS_SENT)))

            async def tried() -> bool:
                return recorder.counts.failures >= 1

            await eventually(tried)
        await until_settled(recorder, RESULTS_SENT)
    assert (recorder.counts.recorded, recorder.counts.duplicates, recorder.counts.dead) == (RESULTS_SENT, 0, 0)


async def test_a_batch_waits_and_ends_once_there_is_room(
    broker: MemoryBroker, store: Store, worker: StubWorker, database_url: str
) -> None:
    batch = await submit(store, jsonl(*(line(f"c{number}", LARGE) for number in range(40))))
    async with jobs(broker, store):
        async with full(database_url):
            await asyncio.sleep(0.2)  # it tries, and tries again
            assert (await store.batches.get("me", batch.id)).status in ("validating", "in_progress")
        done = await until_status(store, batch, "completed")
    assert counts(done) == (40, 40, 0)
    assert [one["custom_id"] for one in await read_lines(store, done.output_file_id)] == [f"c{n}" for n in range(40)]


async def test_a_file_without_room_is_refused_and_leaves_nothing(store: Store, database_url: str) -> None:
    async with full(database_url):
        with pytest.raises(StoreUnavailable, match=r"is full|No space left"):
            await submit(store, jsonl(line("c", LARGE * 100)))
        assert (await store.files.list("me")).data == []
    assert (await submit(store, jsonl(line("c", LARGE * 100)))).status == "validating"
