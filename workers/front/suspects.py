"""Jobs that were here whenever a worker died.

A delivery count grows for every job that a dying worker held, also for those that only waited, and one of them may be
the cause. Those that were there too often run one at a time, in an order that is another at each delivery: whoever comes
before the guilty one ends well, so that after a few more deaths it is alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workers.front.job_run import JobRun

SUSPECT_ATTEMPTS = 3
"""Deliveries after which a job is suspected."""
SPREAD_SECONDS = 0.5
"""Jobs that are delivered within this time are put in order."""


class Suspects:
    """Hands out turns."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, run: JobRun) -> AsyncIterator[None]:
        """The block runs while no other suspect's does; at once for a job without suspicion."""
        if run.epoch < SUSPECT_ATTEMPTS:
            yield
            return
        await asyncio.sleep(SPREAD_SECONDS * _place(run))
        async with self._turn:
            yield


def _place(run: JobRun) -> float:
    """From 0 to 1, as good as random, the same wherever the job is delivered so often."""
    digest = hashlib.blake2b(f"{run.job.id}/{run.epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
