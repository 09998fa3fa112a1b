"""Batches from their input file to their output file, whatever happens in between."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from api.jobs.batch_run import BatchSettings
from api.jobs.dispatcher import Dispatcher
from api.jobs.intake import MEGABYTE, Intake, IntakeLimits
from api.jobs.recorder import Recorder
from api.requests import job_from_body
from api.responses import body_from_result
from api.store import BatchRecord, Store
from api.store.files import ABANDONED_AFTER
from api.store.records import NewItem
from broker.base import Broker, BrokerUnavailable, PublishRejected
from broker.memory import MemoryBroker, MemoryHub
from schemas.messages import Result
from schemas.topology import request_queue, topology
from tests.jobs.stub import (
    ENDPOINT,
    MODEL,
    FaultyBroker,
    StubWorker,
    connected,
    eventually,
    jsonl,
    line,
    read_lines,
    running,
    submit,
    swallow,
    until_status,
)
from tests.store.databases import Clock

SETTINGS = BatchSettings(poll=0.01)
QUEUE = request_queue(MODEL, "batch").name


def dispatcher(
    broker: Broker,
    store: Store,
    settings: BatchSettings = SETTINGS,
    *,
    lease: float = 15.0,
    render: Any = body_from_result,
) -> Dispatcher:
    return Dispatcher(broker, store, parse=job_from_body, render=render, settings=settings, lease=lease)


@asynccontextmanager
async def jobs(broker: Broker, store: Store, settings: BatchSettings = SETTINGS) -> AsyncIterator[None]:
    """A dispatcher and a recorder at work."""
    async with running(Recorder(broker, store).run), running(dispatcher(broker, store, settings).run):
        yield


def counts(batch: BatchRecord) -> tuple[int, int, int]:
    return batch.total, batch.completed, batch.failed


async def in_flight(store: Store, batch: BatchRecord, count: int) -> None:
    async def reached() -> bool:
        return await store.items.in_flight(batch.id) == count

    await eventually(reached)


async def test_a_batch_goes_through(broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock) -> None:
    batch = await submit(store, jsonl(*(line(f"c{number}", f"p{number}") for number in range(20))))
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    assert counts(done) == (20, 20, 0)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (40, 20)
    assert done.in_progress_at == done.finalizing_at == done.completed_at == clock.now
    assert done.error_file_id is None
    output = await read_lines(store, done.output_file_id)
    assert [one["custom_id"] for one in output] == [f"c{number}" for number in range(20)]
    assert output[3].keys() == {"id", "custom_id", "response", "error"}
    assert output[3]["error"] is None
    assert output[3]["response"]["status_code"] == 200
    assert output[3]["response"]["request_id"]
    body = output[3]["response"]["body"]
    assert (body["object"], body["choices"][0]["text"], body["usage"]["total_tokens"]) == ("text_completion", "p3!", 3)
    assert len({one["id"] for one in output}) == 20
    assert len(await store.results.usage("me")) == 1
    assert (await store.results.usage("me"))[0].jobs == 20


async def test_the_output_file_is_its_owners_and_expires_as_asked(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    batch = await submit(store, jsonl(line("a")), output_expires_after=3600)
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    assert done.output_file_id is not None
    file = await store.files.get("me", done.output_file_id)
    assert (file.purpose, file.filename, file.expires_at) == (
        "batch_output",
        f"{batch.id}_output.jsonl",
        clock.now + 3600,
    )


async def test_failed_lines_stand_in_the_error_file(broker: MemoryBroker, store: Store, worker: StubWorker) -> None:
    lines = [
        line("good"),
        line("failed", "fail"),
        line("invalid", body={"model": MODEL, "prompt": "x", "top_p": 7}),
        line("nobody's", body={"model": "unknown", "prompt": "x"}),
    ]
    batch = await submit(store, jsonl(*lines))
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    assert counts(done) == (4, 1, 3)
    assert [one["custom_id"] for one in await read_lines(store, done.output_file_id)] == ["good"]
    errors = await read_lines(store, done.error_file_id)
    answers = {one["custom_id"]: one["response"] for one in errors}
    assert [one["error"] for one in errors] == [None, None, None]
    assert {name: answer["status_code"] for name, answer in answers.items()} == {
        "failed": 400,
        "invalid": 400,
        "nobody's": 404,
    }
    codes = {name: answer["body"]["error"]["code"] for name, answer in answers.items()}
    assert (codes["failed"], codes["nobody's"]) == ("context_length_exceeded", "model_not_found")
    assert answers["invalid"]["body"]["error"].keys() == {"message", "type", "param", "code"}
    assert answers["invalid"]["body"]["error"]["param"] == "top_p"


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (jsonl(line("a"), b"{"), "invalid_json_line", 2),
        (jsonl(line("a"), line("a")), "duplicate_custom_id", 2),
        (jsonl(line("a", url="/v1/other")), "invalid_url", 1),
        (jsonl(*(line(f"c{number}") for number in range(5))), "too_many_lines", None),
        (b"\n \n", "empty_file", None),
        (b"", "empty_file", None),
        (b"x" * 1001, "line_too_long", 1),
        (b"x\n" * 1001, "file_too_large", None),
    ],
)
async def test_a_malformed_file_fails_the_batch_and_nothing_is_sent(
    broker: MemoryBroker, store: Store, worker: StubWorker, content: bytes, code: str, number: int | None
) -> None:
    limits = IntakeLimits(lines=4, bytes=2000, line_bytes=1000)
    batch = await submit(store, content)
    async with jobs(broker, store, replace(SETTINGS, limits=limits)):
        failed = await until_status(store, batch, "failed")
    assert [(error.code, error.line) for error in failed.errors] == [(code, number)]
    assert failed.failed_at is not None
    assert counts(failed) == (0, 0, 0)
    assert worker.jobs == []
    assert await store.items.unfinished(batch.id, 10) == []


async def test_a_batch_whose_input_is_gone_fails(broker: MemoryBroker, store: Store) -> None:
    batch = await submit(store, jsonl(line("a")))
    await store.files.delete("me", batch.input_file_id)
    async with jobs(broker, store):
        failed = await until_status(store, batch, "failed")
    assert [error.code for error in failed.errors] == ["file_not_found"]


async def test_a_crash_between_publish_and_mark_counts_no_line_twice(
    broker: MemoryBroker, store: Store, worker: StubWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await submit(store, jsonl(*(line(f"c{number}") for number in range(5))))
    reached, mark = asyncio.Event(), store.items.mark_dispatched

    async def crash(job_ids: Sequence[str]) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store.items, "mark_dispatched", crash)
    async with running(dispatcher(broker, store).run):
        await reached.wait()
    monkeypatch.setattr(store.items, "mark_dispatched", mark)
    async with running(dispatcher(broker, store).run):
        await worker.until(lambda: len(worker.jobs) == 10)
        async with running(Recorder(broker, store).run):
            done = await until_status(store, batch, "completed")
    assert sorted(worker.jobs) == sorted(2 * [f"{batch.id}-{number}" for number in range(1, 6)])
    assert counts(done) == (5, 5, 0)
    assert done.usage.prompt_tokens == 10
    assert len(await read_lines(store, done.output_file_id)) == 5
    assert (await store.results.usage("me"))[0].jobs == 5


async def test_a_restart_goes_on_where_the_store_stands_though_the_broker_forgot(
    broker: MemoryBroker, store: Store, worker: StubWorker
) -> None:
    window = replace(SETTINGS, window=4)
    batch = await submit(store, jsonl(line("a"), line("b"), *(line(f"m{number}", "mute") for number in range(10))))
    async with jobs(broker, store, window):
        await worker.until(lambda: len(worker.jobs) == 6)
    again = MemoryHub()
    fresh, other = await connected(again), await connected(again)
    await fresh.declare(topology((MODEL,)))
    loud = StubWorker(other)
    loud.mute = False
    await loud.start()
    async with jobs(fresh, store, window):
        done = await until_status(store, batch, "completed")
    await fresh.close()
    await other.close()
    assert counts(done) == (12, 12, 0)
    assert not {f"{batch.id}-1", f"{batch.id}-2"} & set(loud.jobs)
    assert len(loud.jobs) == len(set(loud.jobs)) == 10
    assert len(await read_lines(store, done.output_file_id)) == 12


async def test_no_more_than_a_window_is_in_flight(broker: MemoryBroker, store: Store, worker: StubWorker) -> None:
    worker.gate.clear()
    batch = await submit(store, jsonl(*(line(f"c{number}") for number in range(30))))
    async with jobs(broker, store, replace(SETTINGS, window=8)):
        await in_flight(store, batch, 8)
        await asyncio.sleep(0.05)
        assert len(worker.jobs) == 8
        worker.gate.set()
        done = await until_status(store, batch, "completed")
    assert counts(done) == (30, 30, 0)
    assert len(worker.jobs) == 30


async def test_two_dispatchers_share_the_batches_without_doubling_a_line(
    hub: MemoryHub, broker: MemoryBroker, store: Store, worker: StubWorker
) -> None:
    other = await connected(hub)
    batches = [await submit(store, jsonl(*(line(f"c{number}") for number in range(20)))) for _ in range(4)]
    async with jobs(broker, store, replace(SETTINGS, window=3)), jobs(other, store, replace(SETTINGS, window=3)):
        done = [await until_status(store, batch, "completed") for batch in batches]
    await other.close()
    assert [counts(batch) for batch in done] == 4 * [(20, 20, 0)]
    assert len(worker.jobs) == len(set(worker.jobs)) == 80


async def test_a_dead_dispatchers_batch_is_taken_over_when_its_lease_ends(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    batch = await submit(store, jsonl(line("a")))
    await store.batches.claim("dead", 15.0, 1)
    async with jobs(broker, store):
        await asyncio.sleep(0.05)
        assert (await store.batches.get("me", batch.id)).status == "validating"
        clock.now += 15.1
        await until_status(store, batch, "completed")


async def test_an_interrupted_validation_begins_anew(broker: MemoryBroker, store: Store, worker: StubWorker) -> None:
    batch = await submit(store, jsonl(line("a"), line("b")))
    await store.batches.claim("dead", 15.0, 1)
    await store.items.add("dead", batch.id, [NewItem(1, "old", f"{batch.id}-1", MODEL, message=b"{}")])
    await store.batches.release("dead", batch.id)
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    assert [one["custom_id"] for one in await read_lines(store, done.output_file_id)] == ["a", "b"]


async def test_files_written_in_vain_leave_nothing_behind(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 2
    finish = store.batches.finish

    async def refuse(*args: Any) -> bool:
        nonlocal refusals
        refusals -= 1
        return refusals < 0 and await finish(*args)

    monkeypatch.setattr(store.batches, "finish", refuse)
    batch = await submit(store, jsonl(line("a"), line("b", "fail")))
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    assert refusals == -1
    assert len(await read_lines(store, done.error_file_id)) == 1
    clock.now += 10 * ABANDONED_AFTER
    assert await store.files.purge() == 0


async def test_a_lost_lease_stops_the_run(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    worker.gate.clear()
    batch = await submit(store, jsonl(line("a")))

    async def stolen() -> bool:
        clock.now += 1.0
        return bool(await store.batches.claim("thief", 1e6, 1))

    async def noticed() -> bool:
        return "the lease is lost" in caplog.text

    async with running(dispatcher(broker, store, lease=0.03).run):
        await in_flight(store, batch, 1)
        await eventually(stolen)
        await eventually(noticed)
        assert await store.items.requeue(batch.id) == 1
        await asyncio.sleep(0.05)
    assert len(worker.jobs) == 1
    assert await store.batches.finalize("thief", batch.id)


async def test_cancelling_stops_lines_in_flight_and_keeps_what_is_done(
    broker: MemoryBroker, store: Store, worker: StubWorker
) -> None:
    lines = [line("done"), *(line(f"h{number}", "hang") for number in range(3)), *(line(f"w{n}") for n in range(600))]
    batch = await submit(store, jsonl(*lines))
    worker_settings = replace(SETTINGS, window=3)
    async with jobs(broker, store, worker_settings):
        await worker.until(lambda: len(worker.jobs) == 4)
        await in_flight(store, batch, 3)
        await store.batches.cancel("me", batch.id)
        ended = await until_status(store, batch, "cancelled")
    assert worker.cancelled == {f"{batch.id}-{number}" for number in (2, 3, 4)}
    assert len(worker.jobs) == 4
    assert counts(ended) == (604, 1, 603)
    assert ended.cancelled_at is not None
    assert [one["custom_id"] for one in await read_lines(store, ended.output_file_id)] == ["done"]
    errors = await read_lines(store, ended.error_file_id)
    assert len(errors) == 603
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert {one["response"] for one in errors} == {None}


async def test_a_cancelled_batch_waits_only_so_long_for_a_silent_worker(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    batch = await submit(store, jsonl(line("a", "mute")))
    async with jobs(broker, store):
        await in_flight(store, batch, 1)
        await store.batches.cancel("me", batch.id)
        await worker.until(lambda: worker.cancelled == {f"{batch.id}-1"})
        clock.now += SETTINGS.drain - 1
        await asyncio.sleep(0.05)
        assert (await store.batches.get("me", batch.id)).status == "cancelling"
        clock.now += 1
        ended = await until_status(store, batch, "cancelled")
    assert counts(ended) == (1, 0, 1)
    assert ended.output_file_id is None


async def test_a_batch_cancelled_before_it_was_read_has_no_files(broker: MemoryBroker, store: Store) -> None:
    batch = await submit(store, jsonl(line("a")))
    await store.batches.cancel("me", batch.id)
    async with jobs(broker, store):
        ended = await until_status(store, batch, "cancelled")
    assert counts(ended) == (0, 0, 0)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)


async def test_an_expired_batch_keeps_what_is_done(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    batch = await submit(store, jsonl(line("a"), line("b", "mute"), line("c", "mute"), line("d")), window_seconds=100)
    async with jobs(broker, store, replace(SETTINGS, window=2)):
        await worker.until(lambda: len(worker.jobs) == 3)
        await in_flight(store, batch, 2)
        assert worker.last is not None
        assert worker.last.deadline == clock.now + 100
        clock.now += 100 + SETTINGS.drain
        ended = await until_status(store, batch, "expired")
    assert counts(ended) == (4, 1, 3)
    assert ended.expired_at == clock.now
    assert [one["custom_id"] for one in await read_lines(store, ended.output_file_id)] == ["a"]
    errors = await read_lines(store, ended.error_file_id)
    assert [(one["custom_id"], one["error"]["code"]) for one in errors] == [
        (name, "batch_expired") for name in ("b", "c", "d")
    ]


async def test_a_result_that_comes_after_the_end_is_kept_in_the_ledger_alone(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    worker.gate.clear()
    batch = await submit(store, jsonl(line("a")))
    async with jobs(broker, store):
        await in_flight(store, batch, 1)
        await store.batches.cancel("me", batch.id)
        clock.now += SETTINGS.drain
        ended = await until_status(store, batch, "cancelled")
        worker.gate.set()
    assert (await store.batches.get("me", batch.id)) == ended
    assert (await store.results.get("me", f"{batch.id}-1")).outcome == "cancelled"


async def test_a_full_queue_or_a_lost_broker_only_delays(
    broker: MemoryBroker, store: Store, worker: StubWorker
) -> None:
    faulty = FaultyBroker(broker)
    faulty.faults = [PublishRejected("full"), BrokerUnavailable("gone"), BrokerUnavailable("gone")]
    batch = await submit(store, jsonl(*(line(f"c{number}") for number in range(5))))
    async with running(Recorder(broker, store).run), running(dispatcher(faulty, store).run):
        done = await until_status(store, batch, "completed")
    assert counts(done) == (5, 5, 0)
    assert len(worker.jobs) == 5


async def test_lines_that_the_broker_lost_go_out_again(hub: MemoryHub, broker: MemoryBroker, store: Store) -> None:
    batch = await submit(store, jsonl(line("a"), line("b")))
    async with jobs(broker, store, replace(SETTINGS, stall=0.05)):
        await in_flight(store, batch, 2)
        await asyncio.sleep(0.1)
        assert await broker.queue_depth(QUEUE) == 2
        connection = await connected(hub)
        await swallow(connection, QUEUE, 2)
        assert await broker.queue_depth(QUEUE) == 0
        worker = StubWorker(connection)
        await worker.start()
        done = await until_status(store, batch, "completed")
    await connection.close()
    assert counts(done) == (2, 2, 0)


async def test_an_output_that_cannot_be_rendered_costs_one_line(
    broker: MemoryBroker, store: Store, worker: StubWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def render(endpoint: str, result: Result) -> dict[str, Any]:
        if result.choices[0].text == "bug!":
            raise ZeroDivisionError
        return body_from_result(endpoint, result)

    batch = await submit(store, jsonl(line("a", "bug"), line("b")))
    async with running(Recorder(broker, store).run), running(dispatcher(broker, store, render=render).run):
        done = await until_status(store, batch, "completed")
    output = await read_lines(store, done.output_file_id)
    assert [one["response"]["status_code"] for one in output] == [500, 200]
    assert "ZeroDivisionError" in caplog.text


async def test_a_20_megabyte_input_is_read_in_flat_memory(store: Store) -> None:
    text = jsonl(line("c", "x" * 20_000)).replace(b'"c"', b'"c%06d"')

    async def generated() -> AsyncIterator[bytes]:
        for number in range(1050):
            yield text % number

    file = await store.files.create(generated(), owner="me", filename="f", purpose="batch", limit=30 * MEGABYTE)
    batch = await store.batches.create("me", input_file_id=file.id, endpoint=ENDPOINT)
    await store.batches.claim("w", 15.0, 1)
    tracemalloc.start()
    try:
        total, errors = await Intake(store, batch, "w", job_from_body, IntakeLimits()).run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.bytes > 20 * MEGABYTE
    assert (total, errors) == (1050, [])
    assert peak < 12 * MEGABYTE


async def test_many_lines_of_output_come_in_order(broker: MemoryBroker, store: Store, worker: StubWorker) -> None:
    batch = await submit(
        store, jsonl(*(line(f"c{number}", "fail" if number % 7 == 0 else "x") for number in range(450)))
    )
    async with jobs(broker, store):
        done = await until_status(store, batch, "completed")
    output = [one["custom_id"] for one in await read_lines(store, done.output_file_id)]
    errors = [one["custom_id"] for one in await read_lines(store, done.error_file_id)]
    assert output == [f"c{number}" for number in range(450) if number % 7]
    assert errors == [f"c{number}" for number in range(0, 450, 7)]
