"""Ending a consumer when the process does."""

from __future__ import annotations

import asyncio
import logging

from broker.base import BrokerError, Subscription

log = logging.getLogger(__name__)

CANCEL_TIMEOUT = 5.0


async def end(subscription: Subscription | None) -> None:
    """Cancel it if it was opened. A broker that is gone has ended it already: that is logged, and closing goes on."""
    if subscription is None:
        return
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await subscription.cancel()
    except (BrokerError, TimeoutError) as error:
        log.warning("consumer of %s not cancelled: %s", subscription.queue, error or "no answer in time")
