"""How a command runs its parts side by side, and stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cli.errors import PartEnded

logger = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_AT_ONCE = 130
STOP_TIMEOUT = 15.0
"""Seconds for a part to end once it is told to."""


def say(line: str) -> None:
    """To the person at the terminal; answers and data go to stdout, this does not."""
    print(line, file=sys.stderr, flush=True)


def freeze_heap() -> None:
    """Have the garbage collector leave alone what a process has loaded by now: a full collection that walks all of it
    stops the event loop, and with it every stream, for 23 ms in an api process and 79 ms in a worker's front."""
    gc.collect()
    gc.freeze()


class StopSignal:
    """SIGINT or SIGTERM asks for an orderly stop; the second one ends the process at once."""

    def __init__(self, exit_now: Callable[[int], Any] = os._exit) -> None:
        self._exit_now = exit_now
        self._event = asyncio.Event()

    def install(self) -> StopSignal:
        """Take over the process's handlers. Within the event loop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.receive)
        return self

    def receive(self) -> None:
        if self._event.is_set():
            say("stopped at once; what was under way is lost here and delivered again by RabbitMQ")
            self._exit_now(EXIT_AT_ONCE)
        self.request()

    def request(self) -> None:
        """Ask for an orderly stop, however often."""
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The outcome of `work`, or None where the signal comes first; `work` is then cancelled."""
        return await unless(self._event, work)


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The outcome of `work`, or None where the event is set first; `work` is then cancelled."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancel(task)
        await _cancel(stopped)


class Parts:
    """Background parts of a command, by name. None of them is expected to end by itself."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    async def wait(self, stop: StopSignal) -> None:
        """Return when told to stop. Raises PartEnded where a part ends before."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([stopped, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopped)
        for name, task in self._tasks.items():
            if task.done():
                error = task.exception()
                logger.debug("the %s ended", name, exc_info=error)
                raise PartEnded(name, error)

    async def join(self, name: str, asked: Awaitable[Any] | None = None, timeout: float = STOP_TIMEOUT) -> None:
        """Wait for a part that was told to end, by awaiting `asked` where given; cancel it when it takes too long."""
        if asked is not None:
            await asked
        task = self._tasks.pop(name, None)
        if task is not None:
            await asyncio.wait([task], timeout=timeout)
            await _cancel(task)

    async def cancel(self, *names: str) -> None:
        """End these parts, or all. Their failures have been told, or no longer matter."""
        for name in names or list(self._tasks):
            if (task := self._tasks.pop(name, None)) is not None:
                await _cancel(task)


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=STOP_TIMEOUT)
    if task.done() and not task.cancelled():
        task.exception()  # seen: asyncio would log it as never retrieved
