"""The same tests on both brokers: `connected` gives any number of clients of one hub or one RabbitMQ."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aio_pika import connect

from broker.amqp import AmqpBroker
from broker.base import Broker
from broker.memory import MemoryBroker, MemoryHub
from schemas.topology import DEAD, REQUESTS, RESULTS, Exchange, Queue, Topology, topology

NewClient = Callable[[], Awaitable[Broker]]


@pytest.fixture(params=["memory", "amqp"])
def make_broker(request: pytest.FixtureRequest) -> Callable[[], Broker]:
    """Makes unconnected clients of one and the same broker."""
    if request.param == "memory":
        hub = MemoryHub()
        return lambda: MemoryBroker(hub)
    url = request.getfixturevalue("amqp_url")
    return lambda: AmqpBroker(url, name="test")


@pytest.fixture
def queue() -> Queue:
    """A queue of this test alone, with a delivery limit of two redeliveries, a dead letter queue and no length limit."""
    key = uuid.uuid4().hex
    return Queue(f"test.{key}", REQUESTS, key, delivery_limit=2, dead_letter=True)


@pytest.fixture
def short_queue() -> Queue:
    """A queue of this test alone, for three messages."""
    key = uuid.uuid4().hex
    return Queue(f"test.{key}", REQUESTS, key, max_length=3)


@pytest.fixture
def fanout() -> Exchange:
    return Exchange(f"test.{uuid.uuid4().hex}", "fanout")


@pytest.fixture
async def new_client(
    request: pytest.FixtureRequest,
    make_broker: Callable[[], Broker],
    queue: Queue,
    short_queue: Queue,
    fanout: Exchange,
) -> AsyncIterator[NewClient]:
    """Connects clients, closed after the test; the test's topology is declared, and taken away again."""
    clients: list[Broker] = []

    async def connected() -> Broker:
        client = make_broker()
        await client.connect()
        clients.append(client)
        return client

    first = await connected()
    common = topology()
    await first.declare(Topology((*common.exchanges, fanout), (*common.queues, queue, short_queue)))
    yield connected
    for client in clients:
        await client.close()
    if isinstance(first, AmqpBroker):
        url = request.getfixturevalue("amqp_url")
        await delete(url, [queue.name, short_queue.name, RESULTS, DEAD], [fanout.name])


async def delete(url: str, queues: list[str], exchanges: list[str]) -> None:
    async with await connect(url) as connection, connection.channel() as channel:
        for queue in queues:
            await channel.queue_delete(queue)
        for exchange in exchanges:
            await channel.exchange_delete(exchange)


@pytest.fixture
async def broker(new_client: NewClient) -> Broker:
    return await new_client()
