"""`headrace topology`."""

from __future__ import annotations

import asyncio

from cli.services import amqp_broker, connected
from cli.settings import TopologySettings
from schemas.topology import topology


def run(settings: TopologySettings) -> None:
    """Declare everything on RabbitMQ and print what there is. Raises StartError."""
    asyncio.run(_declare(settings))


async def _declare(settings: TopologySettings) -> None:
    models = tuple(settings.models)
    async with connected(amqp_broker(settings, "headrace-topology"), models):
        declared = topology(models)
    for exchange in declared.exchanges:
        print(f"exchange  {exchange.name} ({exchange.kind})")
    for queue in declared.queues:
        print(f"queue     {queue.name}")
