"""A job id is published twice: the same job once, and no other job under its id."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.messages import Job
from tests.front.harness import REPLY, Bench, Reader


async def another_reader(bench: Bench) -> Reader:
    reader = Reader(bench.client)
    await reader.start()
    return reader


def again(job: Job, reader: Reader, **changes: Any) -> Job:
    """As a publisher makes it that has lost its connection."""
    return msgspec.structs.replace(job, reply_to=reader.queue, created=job.created + 5, **changes)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_running_job_goes_over_to_who_publishes_it_again(bench: Bench, stream: bool) -> None:
    engine, _ = await bench.worker()
    second = await another_reader(bench)
    job = bench.job(stream=stream)
    await bench.submit(job)
    await engine.until_running(1)
    await engine.step(5)
    await bench.submit(again(job, second))
    await bench.settle()
    await engine.play()
    result = await second.result("j1")
    text = second.texts["j1", 0] if stream else result.choices[0].text
    assert (result.outcome, text) == ("completed", REPLY)
    await bench.settle()
    assert (len(engine.added), bench.unsettled, len(bench.results.results)) == (1, 0, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_has_ended_is_told_again(bench: Bench, stream: bool) -> None:
    engine, _ = await bench.worker()
    second = await another_reader(bench)
    job = bench.job(stream=stream)
    await bench.submit(job)
    await engine.until_running(1)
    await engine.play()
    first = await bench.reader.result("j1")
    await bench.submit(again(job, second, deadline=1.0))
    assert await second.result("j1") == first
    if stream:
        assert second.texts["j1", 0] == REPLY
    await bench.settle()
    assert (len(engine.added), bench.unsettled, len(bench.results.results)) == (1, 0, 1)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("change", [{"prompt": "other"}, {"owner": "other"}, {"stream": False}])
async def test_another_job_does_not_take_the_id(bench: Bench, ended: bool, change: dict[str, Any]) -> None:
    engine, _ = await bench.worker()
    second = await another_reader(bench)
    job = bench.job()
    await bench.submit(job)
    await engine.until_running(1)
    if ended:
        await engine.play()
        await bench.reader.result("j1")
    await bench.submit(again(job, second, **change))
    refused = await second.result("j1")
    assert refused.error is not None
    assert (refused.outcome, refused.error.status, refused.error.code) == ("failed", 409, "job_id_reused")
    await bench.dead.until(1)
    assert bench.dead.messages[0].headers["reason"] == refused.error.message
    await engine.play()
    assert (await bench.reader.result("j1")).outcome == "completed"
    assert bench.reader.texts["j1", 0] == REPLY
    await bench.settle()
    assert [result.outcome for result in bench.results.results] == ["completed"]
    assert bench.unsettled == 0


async def test_its_own_reader_is_not_told_of_the_other_job(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    await bench.submit(bench.job(prompt="other"))
    await bench.dead.until(1)
    assert bench.reader.results == {}
    await engine.play()
    assert (await bench.reader.result("j1")).outcome == "completed"


async def test_the_same_job_may_come_again_in_another_class(bench: Bench) -> None:
    """As a batch line does that is late."""
    engine, _ = await bench.worker()
    job = bench.job(job_class="batch")
    await bench.submit(job)
    await engine.until_running(1)
    await bench.submit(msgspec.structs.replace(job, job_class="interactive"))
    await bench.settle()
    await engine.play()
    await bench.settle()
    assert (len(engine.added), bench.unsettled, [r.outcome for r in bench.results.results]) == (1, 0, ["completed"])
