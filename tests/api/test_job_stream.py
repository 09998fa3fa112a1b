"""What is new, what is known, what is stale, what is missing; and the bounds of the buffer."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

import api.job_stream
from api.errors import ApiError
from api.job_stream import JobStream
from api.shown_tokens import FIRST_PAUSE, MAX_PAUSE, QUIET_SECONDS, Inquiry, ReaderCounters
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
        self.asked: list[str] = []
        self.stream = JobStream(jobs or (job(),), limit, self.counters, self.given_up.append, self.asked.append)

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
    assert reader.stream.answer("j", 3) == [[1, 2], [5]]
    reader.put(delta(2, 3), delta(2, 3, epoch=3))
    assert (await reader.stream.take())[2:] == [delta(2, 3, epoch=3)]


async def test_a_choice_that_has_finished_stays_finished() -> None:
    reader = Reader()
    reader.put(delta(0, 1), delta(1, finish_reason="stop"), delta(1, finish_reason="stop"), delta(1, 2))
    assert await reader.stream.take() == [delta(0, 1), delta(1, finish_reason="stop")]


@pytest.mark.parametrize("bad", [delta(3, 4), delta(1, 2, 3), delta(0, 1, choice=1)])
async def test_a_gap_is_asked_about_and_what_fits_goes_on(bad: Delta) -> None:
    reader = Reader()
    reader.put(delta(0, 1, 2), bad, delta(4, 5))
    assert reader.asked == ["j"]
    assert reader.stream.position("j") == (0, [[1, 2]])
    reader.put(delta(2, 3, 4, 5), delta(4, 5), delta(5, 6))
    assert await reader.stream.take() == [delta(0, 1, 2), delta(2, 3, 4, 5), delta(5, 6)]
    assert (reader.counters.gaps, reader.counters.repairs, reader.given_up) == (1, 1, [])


async def test_each_choice_has_gaps_of_its_own() -> None:
    reader = Reader(job(n=2))
    reader.put(delta(1, 2), delta(0, 7, choice=1))
    assert (reader.counters.repairs, reader.stream.position("j")) == (0, (0, [[], [7]]))
    reader.put(delta(0, 1, 2))
    assert (reader.counters.repairs, reader.stream.position("j")) == (1, (0, [[1, 2], [7]]))


async def test_an_end_without_the_last_tokens_waits_for_them() -> None:
    reader = Reader(job(n=2))
    reader.put(delta(0, 1, finish_reason="stop"), delta(0, 1, choice=1))
    reader.stream.put_result(result())
    assert (reader.asked, reader.stream.unfinished) == (["j"], {"j"})
    last = delta(1, 2, choice=1, finish_reason="length")
    reader.put(last)
    reader.stream.put_result(result())
    assert (await reader.stream.take())[2:] == [last, result()]
    assert reader.counters.repairs == 1


async def test_a_failed_job_needs_no_last_tokens() -> None:
    reader = Reader()
    reader.put(delta(0, 1), delta(2, 3))
    failed = Result(job="j", model="m", outcome="failed")
    reader.stream.put_result(failed)
    assert await reader.stream.take() == [delta(0, 1), failed]


@pytest.mark.parametrize(("gap", "code"), [(True, "stream_gap"), (False, "broker_unavailable")])
async def test_what_stays_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, gap: bool, code: str) -> None:
    monkeypatch.setattr(api.job_stream, "REPAIR_SECONDS", -1.0)
    reader = Reader()
    reader.put(delta(0, 1, 2), *[delta(3, 4)] * gap)
    reader.stream.reconnected()
    assert not reader.stream.is_due("j", time.monotonic())
    assert await reader.stream.take() == [delta(0, 1, 2)]
    with pytest.raises(ApiError) as caught:
        await reader.stream.take()
    assert (caught.value.status, caught.value.code) == (500 if gap else 503, code)
    assert (reader.given_up, reader.counters.unrepaired) == ([reader.stream], 1)


async def test_a_job_that_has_not_begun_may_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.job_stream, "REPAIR_SECONDS", -1.0)
    reader = Reader()
    reader.stream.reconnected()
    assert reader.stream.is_due("j", time.monotonic())
    assert not reader.stream.failed


async def test_a_word_without_tokens_says_that_nothing_is_missing() -> None:
    reader = Reader()
    reader.put(delta(0, 1))
    reader.stream.reconnected()
    reader.put(Delta(job="j", epoch=0, offset=1))
    assert (await reader.stream.take(), reader.counters.repairs) == ([delta(0, 1)], 1)


def test_who_is_quiet_is_asked_again_ever_later() -> None:
    inquiry = Inquiry(0.0)
    asked = [now for now in range(200) if inquiry.is_due(now)]
    assert asked[0] == QUIET_SECONDS
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE
    inquiry.heard = True
    assert not inquiry.is_due(200)
    assert not inquiry.is_due(199 + QUIET_SECONDS)
    assert inquiry.is_due(200 + QUIET_SECONDS)


def test_what_is_missing_is_asked_for_soon_again() -> None:
    inquiry = Inquiry(0.0)
    inquiry.lost(1.0, "a token")
    assert [inquiry.is_due(now) for now in (1.0, 1.0 + FIRST_PAUSE / 2, 1.0 + FIRST_PAUSE)] == [True, False, True]
    inquiry.lost(9.0, "another")
    assert (inquiry.missing, inquiry.missing_since) == ("a token", 1.0)


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
