"""Handlers that collect what they are given, and waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.base import Broker, Delivery, Message
from schemas.topology import Queue

PATIENCE = 60.0


class Inbox:
    """Collects deliveries in order, without settling them."""

    def __init__(self) -> None:
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()

    async def __call__(self, delivery: Delivery) -> None:
        self._deliveries.put_nowait(delivery)

    async def next(self) -> Delivery:
        async with asyncio.timeout(PATIENCE):
            return await self._deliveries.get()

    async def take(self, count: int) -> list[Delivery]:
        return [await self.next() for _ in range(count)]

    async def bodies(self, count: int) -> list[bytes]:
        """Take and acknowledge."""
        bodies = []
        for _ in range(count):
            delivery = await self.next()
            await delivery.ack()
            bodies.append(delivery.message.body)
        return bodies

    @property
    def waiting(self) -> int:
        return self._deliveries.qsize()


class BodyInbox:
    """Collects bodies in order."""

    def __init__(self) -> None:
        self._bodies: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, body: bytes) -> None:
        self._bodies.put_nowait(body)

    async def take(self, count: int) -> list[bytes]:
        async with asyncio.timeout(PATIENCE):
            return [await self._bodies.get() for _ in range(count)]

    @property
    def waiting(self) -> int:
        return self._bodies.qsize()


async def publish(broker: Broker, queue: Queue, *bodies: bytes) -> None:
    for body in bodies:
        await broker.publish(queue.exchange, queue.routing_key, Message(body))


async def until(holds: Callable[[], Awaitable[bool]], patience: float = PATIENCE) -> None:
    """Poll until it holds, at most `patience` seconds."""
    async with asyncio.timeout(patience):
        while not await holds():  # noqa: ASYNC110 the broker tells of no event
            await asyncio.sleep(0.02)


async def depth_becomes(broker: Broker, queue: str, depth: int) -> None:
    async def reached() -> bool:
        return await broker.queue_depth(queue) == depth

    await until(reached)
