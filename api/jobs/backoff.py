"""Waiting between attempts at a service that does not answer."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Doubling pauses from `first` to `longest` seconds, each shortened by up to half at random, so that many waiters
    come back spread out."""

    def __init__(self, first: float = 0.1, longest: float = 10.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """The service answered: begin again with the shortest pause."""
        self._next = self._first

    async def sleep(self) -> None:
        """Wait for this pause; the next is twice as long."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._longest)
        await asyncio.sleep(pause)
