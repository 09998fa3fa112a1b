"""The topology as RabbitMQ takes it."""

from __future__ import annotations

from typing import Any

from aio_pika.abc import AbstractChannel

from schemas.topology import DEAD, DEAD_KEY, Queue, Topology


def queue_arguments(queue: Queue, broker_version: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of a quorum queue's declaration."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if queue.delivery_limit is not None:
        arguments["x-delivery-limit"] = queue.delivery_limit
    elif broker_version >= (4,):
        # From 4.0 on a queue without a limit has one of 20 and drops what exceeds it. Before, -1 counted as 0.
        arguments["x-delivery-limit"] = -1
    if queue.dead_letter:
        arguments["x-dead-letter-exchange"] = DEAD
        arguments["x-dead-letter-routing-key"] = DEAD_KEY
        arguments["x-dead-letter-strategy"] = "at-least-once"
        arguments["x-overflow"] = "reject-publish"  # at-least-once does not work with the default, drop-head
    if queue.max_length is not None:
        arguments["x-max-length"] = queue.max_length
        arguments["x-overflow"] = "reject-publish"
    return arguments


async def declare(channel: AbstractChannel, topology: Topology, broker_version: tuple[int, ...]) -> None:
    """Declare everything; idempotent. A declaration that differs from what exists closes the channel with 406."""
    for exchange in topology.exchanges:
        await channel.declare_exchange(exchange.name, exchange.kind, durable=True)
    for queue in topology.queues:
        declared = await channel.declare_queue(
            queue.name, durable=True, arguments=queue_arguments(queue, broker_version)
        )
        await declared.bind(queue.exchange, queue.routing_key)
    for queue in topology.queues:
        # A quorum queue just declared may be without a leader; one that answers has one.
        await channel.declare_queue(queue.name, passive=True)
