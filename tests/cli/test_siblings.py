"""Processes side by side: one that dies or hangs is replaced, all end with their parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from cli.errors import StartError
from cli.processes import Siblings, hold

HANG_SECONDS = 0.3


def child(folder: str, kind: str, lifeline: Connection) -> None:
    """Leaves its pid in `folder`, then does as told; what replaces it is well-behaved."""
    first = not list(Path(folder).glob("*"))
    if kind == "cannot start":
        os._exit(2)
    asyncio.run(_child(folder, kind if first else "well", lifeline))


async def _child(folder: str, kind: str, lifeline: Connection) -> None:
    broken = asyncio.Event()
    hold(lifeline, broken.set)
    leave_word(folder, "")
    if kind == "hangs":
        asyncio.get_running_loop().call_later(0.1, time.sleep, 60)
    await broken.wait()
    leave_word(folder, "ended in order")


def leave_word(folder: str, word: str) -> None:
    Path(folder, str(os.getpid())).write_text(word)


def parent(folder: str) -> None:
    async def main() -> None:
        await Siblings(child, [(folder, "well"), (folder, "well")]).run()

    asyncio.run(main())


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*")]


async def until_pids(folder: Path, count: int) -> list[int]:
    async with asyncio.timeout(30):
        while len(found := pids(folder)) < count:  # noqa: ASYNC110 (other processes)
            await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def keeping(folder: Path, *kinds: str) -> AsyncIterator[Siblings]:
    siblings = Siblings(child, [(str(folder), kind) for kind in kinds], hang_seconds=HANG_SECONDS)
    running = asyncio.create_task(siblings.run())
    try:
        yield siblings
    finally:
        running.cancel()
        await asyncio.wait([running])
        await siblings.stop(10.0)


async def test_all_end_in_order(tmp_path: Path) -> None:
    async with keeping(tmp_path, "well", "well"):
        started = await until_pids(tmp_path, 2)
    assert not any(psutil.pid_exists(pid) for pid in started)
    assert {(tmp_path / str(pid)).read_text() for pid in started} == {"ended in order"}


async def test_one_that_dies_is_replaced(tmp_path: Path) -> None:
    async with keeping(tmp_path, "well"):
        (first,) = await until_pids(tmp_path, 1)
        os.kill(first, signal.SIGKILL)
        assert set(await until_pids(tmp_path, 2)) > {first}


async def test_one_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with keeping(tmp_path, "hangs"):
        (first,) = await until_pids(tmp_path, 1)
        await until_pids(tmp_path, 2)
        assert not psutil.pid_exists(first)


async def test_one_that_cannot_start_ends_all(tmp_path: Path) -> None:
    siblings = Siblings(child, [(str(tmp_path), "cannot start"), (str(tmp_path), "well")])
    with pytest.raises(StartError):
        async with asyncio.timeout(30):
            await siblings.run()
    await siblings.stop(10.0)
    assert not any(psutil.pid_exists(pid) for pid in pids(tmp_path))


async def test_they_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=parent, args=(str(tmp_path),))
    process.start()
    started = [psutil.Process(pid) for pid in await until_pids(tmp_path, 2)]
    process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, timeout=10)
    process.join()
    assert not alive
