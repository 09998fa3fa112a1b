"""What is new, what is known, what is stale, what is missing; and the bounds of the buffer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.errors import ApiError
from api.job_stream import JobStream, ReaderCounters
from schemas.messages import Delta, Job, Result, SamplingParams


def job(id: str = "j", n: int = 1, stream: bool = True) -> Job:
    return Job(id=id, model="m", prompt="x", stream=stream, sampling=SamplingParams(n=n))


def delta(offset: int, *tokens: int, epoch: int = 0, **fields: Any) -> Delta:
    return Delta(job="j", epoch=epoch, offset=offset, token_ids=list(tokens), text=f"{tokens}", **fields)


def result(id: str = "j", epoch: int = 0) -> Result:
    return Result(job=id, model="m", outcome="completed", epoch=epoch)


class Reader:
    """A stream with its counters."""

    def __init__(self, *jobs: Job, limit: int = 100) -> None:
        self.counters = ReaderCounters()
        self.given_up: list[JobStream] = []
        self.stream = JobStream(jobs or (job(),), limit, self.counters, self.given_up.append)

    def put(self, *deltas: Delta) -> None:
        for each in deltas:
            self.stream.put_delta(each)


async def test_deltas_then_result_then_the_end() -> None:
    reader = Reader()
    deltas = [delta(0, 1, 2), delta(2, 3, finish_reason="stop")]
    reader.put(*deltas)
    reader.stream.put_result(result())
    assert [event async for event in reader.stream] == [*deltas, result()]
    assert await reader.stream.take() == []
    assert reader.stream.unfinished == frozenset()


async def test_known_tokens_are_dropped() -> None:
    reader = Reader()
    reader.put(delta(0, 1, 2), delta(0, 1), delta(0, 1, 2), delta(1, 2), delta(2, 3))
    assert await reader.stream.take() == [delta(0, 1, 2), delta(2, 3)]
    assert reader.counters.repeated_deltas == 3


async def test_lower_epochs_are_stale_for_deltas_and_results() -> None:
    reader = Reader()
    reader.put(delta(0, 1), delta(1, 2, epoch=2), delta(2, 9, epoch=1))
    reader.stream.put_result(result(epoch=1))
    assert await reader.stream.take() == [delta(0, 1), delta(1, 2, epoch=2)]
    assert reader.stream.unfinished == {"j"}
    assert reader.counters.stale_epochs == 2


async def test_answering_a_query_makes_older_epochs_stale() -> None:
    reader = Reader(job(n=2))
    reader.put(delta(0, 1, 2), delta(0, 5, choice=1))
    assert reader.stream.shown("j", 3) == [[1, 2], [5]]
    reader.put(delta(2, 3), delta(2, 3, epoch=3))
    assert (await reader.stream.take())[2:] == [delta(2, 3, epoch=3)]


async def test_a_choice_that_has_finished_stays_finished() -> None:
    reader = Reader()
    reader.put(delta(0, 1), delta(1, finish_reason="stop"), delta(1, finish_reason="stop"), delta(1, 2))
    assert await reader.stream.take() == [delta(0, 1), delta(1, finish_reason="stop")]


@pytest.mark.parametrize("bad", [delta(3, 4), delta(1, 2, 3), delta(0, 1, choice=1)])
async def test_a_gap_ends_the_stream_after_what_was_good(bad: Delta) -> None:
    reader = Reader()
    reader.put(delta(0, 1, 2), bad, delta(2, 3))
    assert await reader.stream.take() == [delta(0, 1, 2)]
    with pytest.raises(ApiError) as caught:
        await reader.stream.take()
    assert (caught.value.status, caught.value.code) == (500, "stream_gap")
    assert reader.counters.gaps == 1
    assert reader.given_up == [reader.stream]
    assert reader.stream.unfinished == {"j"}


async def test_an_end_without_the_last_tokens_is_a_gap() -> None:
    reader = Reader(job(n=2))
    reader.put(delta(0, 1, finish_reason="stop"), delta(0, 1, choice=1))
    reader.stream.put_result(result())
    await reader.stream.take()
    with pytest.raises(ApiError, match="its last ones did not come"):
        await reader.stream.take()
    assert reader.stream.unfinished == frozenset()


async def test_a_slow_reader_fails_and_frees_its_buffer() -> None:
    reader = Reader(limit=3)
    reader.put(delta(0, 1, 2, 3, 4))
    assert len(await reader.stream.take()) == 1
    reader.put(delta(4, 5, 6), delta(6, 7, 8))
    assert reader.given_up == [reader.stream]
    with pytest.raises(ApiError) as caught:
        await reader.stream.take()
    assert (caught.value.status, caught.value.code) == (503, "slow_reader")
    assert reader.counters.slow_readers == 1


async def test_several_jobs_end_with_the_last() -> None:
    reader = Reader(job("a", stream=False), job("b", stream=False))
    reader.stream.put_result(result("b"))
    reader.stream.put_result(result("b"))
    assert await reader.stream.take() == [result("b")]
    reader.stream.put_result(result("a"))
    assert [event async for event in reader.stream] == [result("a")]


async def test_take_waits_and_gives_up() -> None:
    reader = Reader()
    with pytest.raises(TimeoutError):
        await reader.stream.take(0.001)
    taking = asyncio.create_task(reader.stream.take(5))
    await asyncio.sleep(0)
    reader.put(delta(0, 1))
    assert await taking == [delta(0, 1)]
