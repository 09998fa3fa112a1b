"""The worker's Status: every two seconds, on request, and when it leaves."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from broker.base import Broker, BrokerError, Message
from schemas.messages import Status, encode
from schemas.topology import STATUS

logger = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between announcements."""
RATE_SECONDS = 10.0
MIN_SAMPLE_SECONDS = 0.5


class RateMeter:
    """Tokens per second over the last ten seconds of work; idle time does not count."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)])

    def observe(self, busy_seconds: float, tokens: int) -> float:
        """Take both counts since the start; returns the rate."""
        samples = self._samples
        if busy_seconds - samples[-1][0] >= MIN_SAMPLE_SECONDS:
            samples.append((busy_seconds, tokens))
        while len(samples) > 2 and samples[1][0] <= samples[-1][0] - RATE_SECONDS:
            samples.popleft()
        (start, before), (end, after) = samples[0], samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


class Announcer:
    """Publishes what `describe` makes; the argument says whether the worker is leaving."""

    def __init__(self, broker: Broker, describe: Callable[[bool], Status], *, interval: float = INTERVAL) -> None:
        self._broker = broker
        self._describe = describe
        self._interval = interval

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            await self.announce()
            await asyncio.sleep(self._interval)

    async def announce(self, *, leaving: bool = False) -> None:
        """A lost announcement is not missed: the next comes soon, and silence says that the worker is gone."""
        message = Message(encode(self._describe(leaving)))
        try:
            await self._broker.publish(STATUS, "", message, confirm=False)
        except BrokerError as error:
            logger.warning("status not announced: %s", error)
