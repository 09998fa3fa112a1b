"""When things are killed, and when jobs begin so that a kill finds them under way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable

from bench.chaos_stack import ChaosStack

LEAD_SECONDS = 1.5
"""Within which the jobs begin that a kill shall find under way."""
POLL_SECONDS = 0.05


class Schedule:
    """A kill every `every` seconds, or as soon as everything is up again after the one before. `jobs` jobs in all are
    spread over `kills` of them, and begin shortly before. `over` ends it."""

    def __init__(self, chaos: ChaosStack, every: float, jobs: int, kills: int, over: asyncio.Event) -> None:
        self._chaos = chaos
        self._every = every
        self._kills_per_job = kills / jobs
        self._over = over
        self._planned: list[float] = []
        """Of each kill so far and the next, the moment by the monotonic clock."""

    async def kill_in_turn(self, tell: Callable[[str], None]) -> None:
        """Returns, with everything running, once `over` is set."""
        last = time.monotonic()
        for name in itertools.cycle(self._chaos.events()):
            await self._chaos.until_ready()
            last = max(last + self._every, time.monotonic() + LEAD_SECONDS)
            self._planned.append(last)
            await self._sleep_until(last)
            if self._over.is_set():
                return
            tell(f"{name} ...")
            await self._chaos.cause(name)

    async def turn(self, number: int) -> bool:
        """Wait for the moment at which this job begins; False where it shall not, since all is over."""
        kill, part = divmod(number * self._kills_per_job, 1)
        while len(self._planned) <= kill and not self._over.is_set():
            await self._sleep_until(time.monotonic() + POLL_SECONDS)
        if not self._over.is_set():
            await self._sleep_until(self._planned[int(kill)] - LEAD_SECONDS * (1 - part))
        return not self._over.is_set()

    async def _sleep_until(self, moment: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), max(0.0, moment - time.monotonic()))
