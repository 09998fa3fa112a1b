"""Terminal Results and dead letters: published until the broker has confirmed them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from broker.base import Broker, BrokerError, Message
from broker.dead_letters import dead_letter
from schemas.messages import Result, encode
from schemas.topology import DEAD, DEAD_KEY, RESULTS, RESULTS_KEY

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.1
MAX_DELAY = 5.0


class ResultPublisher:
    """Retries with growing delay for as long as the worker lives: a job is acknowledged only after its Result."""

    def __init__(self, broker: Broker, *, first_delay: float = FIRST_DELAY, max_delay: float = MAX_DELAY) -> None:
        self._broker = broker
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Give up what is not confirmed; its jobs stay unacknowledged."""
        self._closing.set()

    async def publish(self, result: Result) -> bool:
        """True once confirmed, False if the worker closes before."""
        message = Message(encode(result), message_id=result.job)
        return await self._confirm(RESULTS, RESULTS_KEY, message)

    async def bury(self, message: Message, reason: str, *, attempts: int, source: str) -> bool:
        """Copy a message to the dead-letter queue, with the reason. True once confirmed."""
        letter = dead_letter(message, reason=reason, attempts=attempts, source=source)
        return await self._confirm(DEAD, DEAD_KEY, letter)

    async def _confirm(self, exchange: str, key: str, message: Message) -> bool:
        delay = self._first_delay
        while not self._closing.is_set():
            try:
                await self._broker.publish(exchange, key, message, confirm=True)
            except BrokerError as error:
                logger.warning("publish to %s failed, again in %.1f s: %s", exchange, delay, error)
            else:
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)
            delay = min(2 * delay, self._max_delay)
        return False
