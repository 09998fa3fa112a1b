"""The log of a request's events: many readers, a bound, an end."""

from __future__ import annotations

import asyncio

import pytest

from api.errors import ApiError
from api.event_log import EventLog, LogReader
from schemas.messages import Delta, Result

DONE = Result(job="j", model="m", outcome="completed")


def delta(offset: int, tokens: int = 1) -> Delta:
    return Delta(job="j", epoch=0, offset=offset, token_ids=[0] * tokens)


async def test_every_reader_gets_everything() -> None:
    log = EventLog()
    early = LogReader(log)
    waiting = asyncio.create_task(early.take(5))
    await asyncio.sleep(0)
    log.extend([delta(0)])
    assert await waiting == [delta(0)]
    log.extend([delta(1), DONE])
    log.end()
    assert await early.take() == [delta(1), DONE]
    assert await early.take() == []
    assert [event async for event in LogReader(log)] == [delta(0), delta(1), DONE]


async def test_silence_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        await LogReader(EventLog()).take(0.01)


async def test_an_error_comes_after_what_there_is() -> None:
    log = EventLog()
    log.extend([delta(0)])
    log.end(ApiError(500, "broken"))
    reader = LogReader(log)
    assert await reader.take() == [delta(0)]
    with pytest.raises(ApiError, match="broken"):
        await reader.take()


async def test_a_log_is_bounded_and_who_is_behind_fails() -> None:
    log = EventLog(limit=10)
    reader, late = LogReader(log), LogReader(log)
    for offset in range(0, 30, 3):
        log.extend([delta(offset, 3)])
        assert await reader.take() == [delta(offset, 3)]
    assert not log.is_whole
    assert len(log.since(log.first)) == 3
    with pytest.raises(ApiError) as caught:
        await late.take()
    assert caught.value.code == "slow_reader"
