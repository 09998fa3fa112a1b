"""A batch that will not end in time at its pace goes on as interactive work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.jobs.batch_run import slack
from api.store import BatchRecord, Store
from broker.base import Delivery, Message
from broker.memory import MemoryBroker
from schemas.messages import Job, Usage, decode, encode
from schemas.topology import RESULTS, RESULTS_KEY, request_queue
from tests.jobs.stub import MODEL, StubWorker, answer, jsonl, line, read_lines, submit, until_status
from tests.jobs.test_dispatcher import SETTINGS, counts, in_flight, jobs
from tests.store.databases import Clock

WINDOW = 1000


def record(**fields: int) -> BatchRecord:
    """Of a batch of 100 lines that began at 0."""
    names = dict.fromkeys(BatchRecord.__dataclass_fields__)
    known = {"created_at": 0, "in_progress_at": 0, "expires_at": WINDOW, "total": 100, "completed": 0, "failed": 0}
    return BatchRecord(**{**names, **known, "usage": Usage(), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "ended", "spare"),
    [
        (500, 50, -100),  # as much again, and a tenth kept back
        (400, 50, 100),
        (50, 1, 850),  # too early to say
        (800, 0, 100),
        (901, 0, -1),
        (899, 100, 1),
    ],
)
def test_slack(now: int, ended: int, spare: float) -> None:
    assert slack(record(completed=ended), now) == pytest.approx(spare)
    assert slack(record(failed=ended), now) == pytest.approx(spare)


async def test_lines_of_a_late_batch_go_out_as_interactive_jobs(
    broker: MemoryBroker, store: Store, clock: Clock
) -> None:
    """No batch job is served here. Those in their queue go out again."""
    batch = await submit(store, jsonl(*(line(f"c{number}") for number in range(6))), window_seconds=WINDOW)
    served: list[Job] = []

    async def serve(delivery: Delivery) -> None:
        served.append(decode(Job, delivery.message.body))
        await broker.publish(RESULTS, RESULTS_KEY, Message(encode(answer(served[-1])), message_id=served[-1].id))
        await delivery.ack()

    await broker.consume(request_queue(MODEL, "interactive").name, serve, prefetch=10)
    async with jobs(broker, store, replace(SETTINGS, window=4)):
        await in_flight(store, batch, 4)
        assert served == []
        clock.now += 0.91 * WINDOW
        done = await until_status(store, batch, "completed")
    assert counts(done) == (6, 6, 0)
    assert len(served) == 6
    assert {job.job_class for job in served} == {"interactive"}
    assert [one["custom_id"] for one in await read_lines(store, done.output_file_id)] == [f"c{n}" for n in range(6)]


async def test_a_batch_in_time_stays_a_batch(
    broker: MemoryBroker, store: Store, worker: StubWorker, clock: Clock
) -> None:
    batch = await submit(store, jsonl(*(line(f"c{number}") for number in range(6))), window_seconds=WINDOW)
    clock.now += 0.5 * WINDOW
    async with jobs(broker, store):
        await until_status(store, batch, "completed")
    assert worker.last is not None
    assert worker.last.job_class == "batch"
