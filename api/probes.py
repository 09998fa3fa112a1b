"""Asking the services behind the app how they are, each within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from api.services import Services
from api.store import StoreError
from broker.base import BrokerError
from schemas.topology import JOB_CLASSES, RESULTS, request_queue


async def not_ready(shared: Services) -> list[str]:
    """Every reason why a request could not be served now; none when it could."""
    limit = shared.settings.probe_timeout
    broker, store = await asyncio.gather(
        _failure("broker", shared.broker.queue_depth(RESULTS), limit),
        _failure("store", shared.store.ping(), limit),
    )
    worker = None if shared.models.workers() else "worker: none is connected"
    return [reason for reason in (broker, store, worker) if reason is not None]


async def measure(shared: Services) -> None:
    """Set the gauges of queues and services. A queue that cannot be measured keeps no stale value."""
    limit = shared.settings.probe_timeout
    queues = [RESULTS] + [
        request_queue(served.id, job_class).name for served in shared.models.models() for job_class in JOB_CLASSES
    ]
    shared.metrics.queue_ready.clear()
    outcomes = await asyncio.gather(
        _failure("store", shared.store.ping(), limit), *(_measure_queue(shared, queue, limit) for queue in queues)
    )
    shared.metrics.up.labels("store").set(outcomes[0] is None)
    shared.metrics.up.labels("broker").set(outcomes[1] is None)


async def _measure_queue(shared: Services, queue: str, limit: float) -> str | None:
    async def depth() -> None:
        shared.metrics.queue_ready.labels(queue).set(await shared.broker.queue_depth(queue))

    return await _failure(queue, depth(), limit)


async def _failure(name: str, probe: Awaitable[object], limit: float) -> str | None:
    """Why the probe failed, in one line."""
    try:
        async with asyncio.timeout(limit):
            await probe
    except TimeoutError:
        return f"{name}: no answer within {limit:g} s"
    except (BrokerError, StoreError) as error:
        return f"{name}: {error}"
    return None
