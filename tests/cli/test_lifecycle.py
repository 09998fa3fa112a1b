"""Parts that run side by side, the signal that stops them, and what is said when one of them fails."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from cli.errors import PartEnded
from cli.lifecycle import EXIT_AT_ONCE, Parts, StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_wait(number: int) -> None:
    stop = StopSignal().install()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await stop.wait()


async def test_a_second_signal_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    stop = StopSignal(codes.append)
    stop.receive()
    assert codes == []
    stop.receive()
    assert codes == [EXIT_AT_ONCE]
    assert "stopped at once" in capsys.readouterr().err


async def test_work_is_cancelled_where_the_signal_comes_first() -> None:
    stop, cancelled = StopSignal(), asyncio.Event()

    async def load() -> str:
        stop.receive()
        try:
            return await asyncio.Event().wait() and "never"
        finally:
            cancelled.set()

    assert await stop.unless(load()) is None
    assert cancelled.is_set()


async def test_work_that_ends_first_has_its_outcome() -> None:
    async def load() -> str:
        return "loaded"

    async def fail() -> str:
        raise ValueError("broken")

    assert await StopSignal().unless(load()) == "loaded"
    with pytest.raises(ValueError, match="broken"):
        await StopSignal().unless(fail())


async def test_a_part_that_fails_ends_the_wait_with_its_name() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    parts = Parts()
    parts.start("recorder", fail())
    parts.start("other", asyncio.Event().wait())
    with pytest.raises(PartEnded, match="the recorder failed: ValueError: broken"):
        await parts.wait(StopSignal())
    await parts.cancel()


async def test_a_part_that_returns_was_not_meant_to() -> None:
    parts = Parts()
    parts.start("worker", asyncio.sleep(0))
    with pytest.raises(PartEnded, match="the worker failed: it ended by itself"):
        await parts.wait(StopSignal())


async def test_the_stop_signal_leaves_parts_running_until_they_are_joined() -> None:
    asked, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await asked.wait()
        done.set()

    async def ask() -> None:
        asked.set()

    stop, parts = StopSignal(), Parts()
    parts.start("worker", work())
    stop.receive()
    await parts.wait(stop)
    assert not done.is_set()
    await parts.join("worker", ask())
    assert done.is_set()


async def test_a_part_that_does_not_end_in_time_is_cancelled() -> None:
    parts, cancelled = Parts(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    parts.start("worker", work())
    await asyncio.sleep(0)
    await parts.join("worker", timeout=0.01)
    assert cancelled.is_set()
