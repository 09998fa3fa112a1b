"""What only a real broker does: drop connections, die, stand still, lose its data, refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import pytest
from aio_pika import connect
from aio_pika.exceptions import AMQPError

from bench.services import RabbitMQ, free_port
from broker.amqp import AmqpBroker
from broker.amqp.consumer import TransientConsumer
from broker.base import Broker, BrokerError, BrokerUnavailable, Message, Subscription, Unroutable
from schemas.topology import CONTROL, request_queue, topology
from tests.broker.inbox import BodyInbox, Inbox, until

MODEL = "recovery"
QUEUE = request_queue(MODEL, "interactive")


@pytest.fixture
def url(amqp_vhost_url: str) -> str:
    return amqp_vhost_url


@pytest.fixture
async def broker(url: str) -> AsyncIterator[AmqpBroker]:
    client = AmqpBroker(url, name="recovery")
    await client.connect()
    await client.declare(topology((MODEL,)))
    yield client
    await client.close()


async def persistently(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat a call until the broker, and who is to get what is published, are there to take it."""

    async def done() -> bool:
        try:
            await call()
        except (BrokerUnavailable, Unroutable):
            return False
        return True

    await until(done, patience=30)


async def publish(broker: Broker, body: bytes) -> None:
    await broker.publish(QUEUE.exchange, QUEUE.routing_key, Message(body))


async def test_consumers_go_on_after_the_broker_closed_their_connections(
    broker: AmqpBroker, rabbitmq: RabbitMQ
) -> None:
    inbox, announcements = Inbox(), BodyInbox()
    await broker.consume(QUEUE.name, inbox, prefetch=1)
    await broker.subscribe(announcements, exchange=CONTROL)
    await publish(broker, b"held")
    held = await inbox.next()
    await asyncio.to_thread(rabbitmq.close_connections)
    again = await inbox.next()
    assert (again.message.body, again.delivery_count) == (b"held", 1)
    await held.ack()  # of a dead channel: nothing happens
    await again.ack()
    await persistently(lambda: publish(broker, b"new"))
    new = await inbox.next()
    assert (new.message.body, new.delivery_count) == (b"new", 0)
    await new.ack()
    await persistently(lambda: broker.publish(CONTROL, "", Message(b"all")))
    assert await announcements.take(1) == [b"all"]


async def test_a_reply_queue_has_a_new_name_after_a_reconnection(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    inbox = BodyInbox()
    subscription = await broker.subscribe(inbox)
    before = subscription.queue
    await asyncio.to_thread(rabbitmq.close_connections)

    async def renamed() -> bool:
        return subscription.queue != before

    await until(renamed)
    await persistently(lambda: broker.publish("", subscription.queue, Message(b"hello")))
    assert await inbox.take(1) == [b"hello"]


async def test_a_subscription_cancelled_before_the_loss_does_not_come_back(
    broker: AmqpBroker, rabbitmq: RabbitMQ
) -> None:
    inbox = Inbox()
    subscription = await broker.consume(QUEUE.name, inbox, prefetch=10)
    await publish(broker, b"held")
    held = await inbox.next()
    await subscription.cancel()
    await asyncio.to_thread(rabbitmq.close_connections)
    await persistently(lambda: publish(broker, b"new"))
    await persistently(lambda: broker.queue_depth(QUEUE.name))  # it goes over the other connection
    await held.ack()
    assert await broker.queue_depth(QUEUE.name) == 2
    assert inbox.waiting == 0


async def test_a_killed_node_loses_nothing_confirmed(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    for number in range(20):
        await publish(broker, b"%d" % number)
    await asyncio.to_thread(rabbitmq.kill)
    with pytest.raises(BrokerUnavailable):
        await publish(broker, b"into the void")
    with pytest.raises(BrokerUnavailable):
        await broker.publish(QUEUE.exchange, QUEUE.routing_key, Message(b"void"), confirm=False, timeout=0.5)
    await asyncio.to_thread(rabbitmq.start)
    inbox = Inbox()
    await persistently(lambda: broker.consume(QUEUE.name, inbox, prefetch=5))
    assert await inbox.bodies(20) == [b"%d" % number for number in range(20)]


async def test_a_broker_that_lost_its_data_gets_the_topology_again(
    broker: AmqpBroker, rabbitmq: RabbitMQ, url: str
) -> None:
    inbox = Inbox()
    await broker.consume(QUEUE.name, inbox, prefetch=1)
    await asyncio.to_thread(rabbitmq.renew_vhost, url)
    await persistently(lambda: publish(broker, b"new"))
    assert (await inbox.next()).message.body == b"new"


async def test_a_consumer_comes_back_after_its_queue_was_deleted(
    broker: AmqpBroker, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    await broker.consume(QUEUE.name, inbox, prefetch=1)
    async with await connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(QUEUE.name)

    async def noticed() -> bool:
        return f"no queue '{QUEUE.name}'" in caplog.text

    await until(noticed)
    await broker.declare(topology((MODEL,)))
    await publish(broker, b"new")
    assert (await inbox.next()).message.body == b"new"


async def test_a_broker_that_stands_still_costs_bounded_time(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    inbox = Inbox()
    await broker.consume(QUEUE.name, inbox, prefetch=1)
    await publish(broker, b"a")
    held = await inbox.next()
    rabbitmq.pause()
    try:
        started = monotonic()
        with pytest.raises(BrokerUnavailable, match="no answer"):
            await broker.publish(QUEUE.exchange, QUEUE.routing_key, Message(b"b"), timeout=0.2)
        await held.ack()
        await broker.close()
        assert monotonic() - started < 10
    finally:
        rabbitmq.resume()


async def test_publishers_in_flight_learn_of_the_loss(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    async def publishing() -> None:
        while True:
            await publish(broker, b"x")

    publishers = [asyncio.create_task(publishing()) for _ in range(8)]
    await asyncio.to_thread(rabbitmq.close_connections)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*publishers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BrokerUnavailable] * 8


async def test_cancelled_calls_are_cancelled(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    rabbitmq.pause()
    try:
        task = asyncio.create_task(publish(broker, b"x"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        rabbitmq.resume()
    await publish(broker, b"y")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("amqp://guest:secret@127.0.0.1:{free}/", "127.0.0.1:{free}"),
        ("amqp://guest:secret@127.0.0.1:{port}/", "127.0.0.1:{port}"),
        ("http://guest:secret@127.0.0.1:{port}/", "no AMQP address"),
        ("guest:secret@127.0.0.1", "no AMQP address"),
    ],
)
async def test_a_failed_connect_says_where_and_keeps_the_secret(rabbitmq: RabbitMQ, address: str, reason: str) -> None:
    ports = {"free": free_port(), "port": rabbitmq.port}
    broker = AmqpBroker(address.format(**ports))
    with pytest.raises(BrokerUnavailable, match=reason.format(**ports)) as caught:
        await broker.connect()
    assert "secret" not in str(caught.value)
    await broker.close()


async def test_a_memory_alarm_stops_publishing_only(broker: AmqpBroker, rabbitmq: RabbitMQ) -> None:
    inbox = Inbox()
    await broker.consume(QUEUE.name, inbox, prefetch=1)
    await publish(broker, b"held")
    await publish(broker, b"ready")
    held = await inbox.next()
    await asyncio.to_thread(rabbitmq.raise_memory_alarm)
    try:
        with pytest.raises(BrokerUnavailable, match="no answer"):  # though it is delivered after the alarm
            await broker.publish(QUEUE.exchange, QUEUE.routing_key, Message(b"late"), timeout=0.2)
        with pytest.raises(BrokerUnavailable, match="out of memory"):  # at once, and it is never delivered
            await broker.publish(QUEUE.exchange, QUEUE.routing_key, Message(b"refused"), timeout=30)
        async with asyncio.timeout(5):
            assert await broker.queue_depth(QUEUE.name) == 1
        await held.ack()
        assert await inbox.bodies(1) == [b"ready"]
    finally:
        await asyncio.to_thread(rabbitmq.clear_memory_alarm)
    assert await inbox.bodies(1) == [b"late"]
    await publish(broker, b"after")
    assert await inbox.bodies(1) == [b"after"]


async def test_a_channel_that_dies_alone_leaves_no_queue_behind(
    broker: AmqpBroker, rabbitmq: RabbitMQ, url: str
) -> None:
    declared = await asyncio.to_thread(rabbitmq.queues, url)
    with pytest.raises(BrokerError, match=r"test\.absent"):
        await broker.subscribe(BodyInbox(), exchange="test.absent")
    inbox = BodyInbox()
    subscription = await broker.subscribe(inbox, exchange=CONTROL)
    before = subscription.queue
    await kill_channel(subscription)

    async def renamed() -> bool:
        return subscription.queue != before

    await until(renamed)
    await broker.publish(CONTROL, "", Message(b"once"))
    assert await inbox.take(1) == [b"once"]
    assert await asyncio.to_thread(rabbitmq.queues, url) == declared | {subscription.queue}


async def kill_channel(subscription: Subscription) -> None:
    """Have the broker close the channel of a subscription, and no other."""
    assert isinstance(subscription, TransientConsumer)
    assert subscription._session is not None
    with pytest.raises(AMQPError):
        await subscription._session.underlay.queue_declare("test.absent", passive=True)
