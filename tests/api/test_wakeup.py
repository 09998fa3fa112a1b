"""Waits end by a wakeup or by their own limit, not by that of an earlier wait."""

from __future__ import annotations

import asyncio

import pytest

from api.wakeup import Wakeup


async def waiting(wakeup: Wakeup, timeout: float | None) -> asyncio.Task[None]:
    task = asyncio.create_task(wakeup.wait(timeout))
    await asyncio.sleep(0)
    return task


async def test_woken() -> None:
    wakeup = Wakeup()
    for timeout in (5.0, None, 5.0):
        task = await waiting(wakeup, timeout)
        assert not task.done()
        wakeup.wake()
        await task
    wakeup.wake()  # nobody waits


async def test_time_is_up() -> None:
    with pytest.raises(TimeoutError):
        await Wakeup().wait(0.01)


async def test_a_shorter_limit_comes_first() -> None:
    wakeup = Wakeup()
    first = await waiting(wakeup, 30.0)
    wakeup.wake()
    await first
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await wakeup.wait(0.01)


async def test_the_timer_of_an_earlier_wait_ends_no_later_one() -> None:
    wakeup = Wakeup()
    first = await waiting(wakeup, 0.02)
    wakeup.wake()
    await first
    started = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await wakeup.wait(0.06)
    assert asyncio.get_running_loop().time() - started >= 0.05


async def test_without_a_limit_an_old_timer_changes_nothing() -> None:
    wakeup = Wakeup()
    first = await waiting(wakeup, 0.01)
    wakeup.wake()
    await first
    task = await waiting(wakeup, None)
    await asyncio.sleep(0.03)
    assert not task.done()
    wakeup.wake()
    await task


async def test_a_cancelled_wait_leaves_it_usable() -> None:
    wakeup = Wakeup()
    task = await waiting(wakeup, 0.01)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError):
        await wakeup.wait(0.01)
    wakeup.close()
