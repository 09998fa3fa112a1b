"""Processes of one command, side by side: started, replaced when one dies or hangs, stopped together.

Each holds one end of a pipe, its lifeline. Its event loop answers what comes through it, and it stops in order when the
other end is closed: by its parent, or because there is no parent any more.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from cli.errors import StartError
from cli.lifecycle import say
from cli.main import EXIT_CANNOT_START

PING_SECONDS = 2.0
HANG_SECONDS = 10.0
"""Without an answer for so long a process is killed and replaced."""
RESTART_PAUSE = 0.5
STARTING_SECONDS = 60.0

Target = Callable[..., None]


def hold(lifeline: Connection, on_break: Callable[[], None]) -> None:
    """In the child, within its event loop: answer, and say when the lifeline breaks."""
    loop = asyncio.get_running_loop()

    def answer() -> None:
        try:
            lifeline.send(lifeline.recv())
        except (EOFError, OSError):
            loop.remove_reader(lifeline.fileno())
            on_break()

    loop.add_reader(lifeline.fileno(), answer)


class Siblings:
    """Runs `target(*arguments, lifeline)` in one process for each element of `arguments`."""

    def __init__(self, target: Target, arguments: Sequence[tuple[Any, ...]], *, hang_seconds: float = HANG_SECONDS):
        self._target = target
        self._arguments = arguments
        self._hang_seconds = hang_seconds
        self._running: set[Sibling] = set()

    async def run(self) -> None:
        """Keep all of them running until cancelled. Raises StartError where one cannot start."""
        keeping = [asyncio.create_task(self._keep(arguments)) for arguments in self._arguments]
        try:
            await asyncio.gather(*keeping)
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)

    async def stop(self, timeout: float) -> None:
        """Ask all to stop in order; those that do not within `timeout` seconds are killed. `run` was cancelled before."""
        for sibling in self._running:
            sibling.release()
        await asyncio.gather(*(sibling.end(timeout) for sibling in self._running))
        self._running.clear()

    def kill(self) -> None:
        """At once."""
        for sibling in self._running:
            sibling.process.kill()

    async def _keep(self, arguments: tuple[Any, ...]) -> None:
        while True:
            sibling = Sibling(self._target, arguments)
            self._running.add(sibling)
            await sibling.watch(self._hang_seconds)
            self._running.discard(sibling)
            if sibling.process.exitcode == EXIT_CANNOT_START:
                raise StartError("one of the processes could not start")
            say(f"process {sibling.process.pid} ended with exit code {sibling.process.exitcode}: starting another")
            await asyncio.sleep(RESTART_PAUSE)


class Sibling:
    """One process and the parent's end of its lifeline. Made within the event loop."""

    def __init__(self, target: Target, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._lifeline, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, theirs))
        self.process.start()
        theirs.close()
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._answered = asyncio.Event()
        self._loop.add_reader(self.process.sentinel, self._on_exit)
        self._loop.add_reader(self._lifeline.fileno(), self._on_answer)

    async def watch(self, hang_seconds: float) -> None:
        """Return when the process has ended, which it is made to when its event loop stands still."""
        patience = max(hang_seconds, STARTING_SECONDS)
        while await self._answers(patience):
            patience = hang_seconds
            await self._wait_exit(min(PING_SECONDS, hang_seconds))
        if not self._exited.is_set():
            say(f"process {self.process.pid} does not answer: it is killed")
            self.process.kill()
        await self._exited.wait()
        self.release()

    def release(self) -> None:
        """Break the lifeline: the process stops in order."""
        if not self._lifeline.closed:
            self._loop.remove_reader(self._lifeline.fileno())
            self._lifeline.close()

    async def end(self, timeout: float) -> None:
        """Wait for its end; kill it after `timeout` seconds."""
        if not await self._wait_exit(timeout):
            self.process.kill()
            await self._exited.wait()

    async def _answers(self, patience: float) -> bool:
        """Whether it answers within `patience` seconds, unless it ends first."""
        self._answered.clear()
        try:
            self._lifeline.send(None)
            async with asyncio.timeout(patience):
                await self._answered.wait()
        except (OSError, TimeoutError):
            return False
        return not self._exited.is_set()

    async def _wait_exit(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    def _on_exit(self) -> None:
        self._loop.remove_reader(self.process.sentinel)
        self.process.join()
        self._exited.set()
        self._answered.set()

    def _on_answer(self) -> None:
        try:
            self._lifeline.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._lifeline.fileno())
            return
        self._answered.set()
