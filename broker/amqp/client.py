"""AmqpBroker: one client of RabbitMQ."""

from __future__ import annotations

import asyncio
import re

from aio_pika import Connection

from broker.amqp.consumer import RPC_TIMEOUT, Consumer, DurableConsumer, TransientConsumer
from broker.amqp.declare import declare
from broker.amqp.errors import bounded
from broker.amqp.link import Link, ReopeningChannel, close_channel, open_channel
from broker.amqp.publisher import Publisher
from broker.base import PUBLISH_TIMEOUT, BodyHandler, Handler, Message, NotSent, Subscription
from broker.handling import TaskSet
from schemas.topology import Topology

DECLARE_TIMEOUT = 30.0


class AmqpBroker:
    """Publishes and consumes on two connections, so that a publisher which RabbitMQ throttles still gets its messages.

    `url` is amqp[s]://user:password@host:port/vhost; a `heartbeat` (seconds) in its query replaces the default. `name`
    is what RabbitMQ shows of the connections. What was declared is declared again after a reconnection.
    """

    def __init__(self, url: str, name: str = "headrace") -> None:
        self._publishing = Link(url, f"{name}.publish", self._declare_again)
        self._consuming = Link(url, f"{name}.consume")
        self._publisher = Publisher(self._publishing)
        # Not on the publishing connection, which RabbitMQ does not read during a memory or disk alarm.
        self._questions = ReopeningChannel(self._consuming, confirms=False)
        self._declared: list[Topology] = []
        self._consumers: list[Consumer] = []
        self._tasks = TaskSet()

    async def connect(self) -> None:
        await self._publishing.open()
        try:
            await self._consuming.open()
        except BaseException:
            await self._publishing.close()
            raise

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.stop()
        self._consumers.clear()
        await self._consuming.close()  # gives back what is unacknowledged, before its handlers are stopped
        await self._tasks.cancel()
        await self._publishing.close()

    async def declare(self, topology: Topology) -> None:
        await self._declare(self._publishing.connection, topology)
        if topology not in self._declared:
            self._declared.append(topology)

    async def _declare_again(self, connection: Connection) -> None:
        for topology in self._declared:
            await self._declare(connection, topology)

    async def _declare(self, connection: Connection, topology: Topology) -> None:
        async with bounded("declaring the topology", DECLARE_TIMEOUT):
            channel = await open_channel(connection)
            try:
                await declare(channel, topology, broker_version(connection))
            finally:
                await close_channel(channel)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        confirm: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        if not confirm:
            await self._publisher.unconfirmed(exchange, routing_key, message, timeout)
            return
        await refuse_while_blocked(self._publishing.connection)
        await self._publisher.confirmed(exchange, routing_key, message, timeout)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        if prefetch < 1:
            raise ValueError("prefetch must be at least 1")
        return await self._started(DurableConsumer(self._consuming, self._tasks, queue, handler, prefetch))

    async def subscribe(self, handler: BodyHandler, *, exchange: str | None = None, key: str = "") -> Subscription:
        return await self._started(TransientConsumer(self._consuming, self._tasks, handler, exchange, key))

    async def _started(self, consumer: Consumer) -> Consumer:
        await consumer.start()
        self._consumers = [*(kept for kept in self._consumers if not kept.is_cancelled), consumer]
        return consumer

    async def queue_depth(self, queue: str) -> int:
        async with bounded(f"asking for the depth of {queue}", RPC_TIMEOUT):
            channel = await self._questions.get()
            declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def refuse_while_blocked(connection: Connection) -> None:
    """Raises NotSent at once where RabbitMQ has said that it reads no publishes, for want of memory or disk.
    It says so in answer to the first that it does not read: that one waits for its confirmation until it times out. Any
    further one would be kept in memory here, to be delivered when nobody expects it any more."""
    assert connection.transport is not None
    try:
        async with asyncio.timeout(0):
            await connection.transport.connection.ready()
    except TimeoutError:
        raise NotSent("RabbitMQ takes no messages: it is out of memory or disk") from None


def broker_version(connection: Connection) -> tuple[int, ...]:
    """As in (3, 10, 8)."""
    assert connection.transport is not None
    version = connection.transport.connection.server_properties["version"]
    text = version.decode() if isinstance(version, bytes) else str(version)
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
