from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.base import Broker, BrokerError, BrokerUnavailable, Message, PublishRejected, Unroutable
from schemas.topology import REQUESTS, Exchange, Queue, Topology
from tests.broker.conftest import NewClient
from tests.broker.inbox import Inbox, depth_becomes, publish


async def test_a_confirmed_message_is_in_its_queue(broker: Broker, queue: Queue) -> None:
    assert await broker.queue_depth(queue.name) == 0
    await publish(broker, queue, b"one", b"two")
    await depth_becomes(broker, queue.name, 2)


async def test_depth_counts_what_is_ready_only(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await publish(broker, queue, b"one", b"two", b"three")
    await broker.consume(queue.name, inbox, prefetch=1)
    delivery = await inbox.next()
    await depth_becomes(broker, queue.name, 2)
    await delivery.ack()
    await inbox.next()
    await depth_becomes(broker, queue.name, 1)


async def test_a_message_arrives_as_it_was_sent(broker: Broker, queue: Queue) -> None:
    message = Message(b"\x00\xff" * 50_000, message_id="id", reply_to="me", headers={"s": "ä", "i": -(2**40), "f": 0.5})
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await broker.publish(queue.exchange, queue.routing_key, message)
    assert (await inbox.next()).message == message


async def test_an_empty_body_arrives(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await publish(broker, queue, b"")
    assert await inbox.bodies(1) == [b""]


@pytest.mark.parametrize("exchange", [REQUESTS, "test.absent", ""])
async def test_unroutable_is_raised(broker: Broker, exchange: str) -> None:
    with pytest.raises(Unroutable, match="nobody"):
        await broker.publish(exchange, "nobody", Message(b"lost"))


async def test_a_fanout_without_queues_is_unroutable(broker: Broker, fanout: Exchange) -> None:
    with pytest.raises(Unroutable):
        await broker.publish(fanout.name, "", Message(b"lost"))


async def test_publishing_goes_on_after_a_missing_exchange(broker: Broker, queue: Queue) -> None:
    with pytest.raises(Unroutable):
        await broker.publish("test.absent", "", Message(b"lost"))
    await publish(broker, queue, b"kept")
    await depth_becomes(broker, queue.name, 1)


async def test_without_confirmation_loss_is_silent(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=10)
    await broker.publish(REQUESTS, "nobody", Message(b"lost"), confirm=False)
    await broker.publish(queue.exchange, queue.routing_key, Message(b"kept"), confirm=False)
    assert await inbox.bodies(1) == [b"kept"]


async def test_messages_of_one_id_fail_or_succeed_each_for_itself(broker: Broker, queue: Queue) -> None:
    message = Message(b"twin", message_id="twin")
    keys = ["nobody", queue.routing_key] * 5
    outcomes = await asyncio.gather(*(broker.publish(REQUESTS, key, message) for key in keys), return_exceptions=True)
    assert [isinstance(outcome, Unroutable) for outcome in outcomes] == [True, False] * 5
    await depth_becomes(broker, queue.name, 5)


async def test_a_full_queue_rejects_and_loses_nothing_accepted(broker: Broker, short_queue: Queue) -> None:
    accepted, rejected = [], 0
    for number in range(20):
        try:
            await publish(broker, short_queue, b"%d" % number)
            accepted.append(b"%d" % number)
        except PublishRejected:
            rejected += 1
    assert len(accepted) >= 3
    assert rejected >= 10  # RabbitMQ may take a few more than the limit
    inbox = Inbox()
    await broker.consume(short_queue.name, inbox, prefetch=100)
    assert await inbox.bodies(len(accepted)) == accepted
    await depth_becomes(broker, short_queue.name, 0)
    await publish(broker, short_queue, b"room again")
    assert await inbox.bodies(1) == [b"room again"]


async def test_declaring_again_changes_nothing(broker: Broker, queue: Queue) -> None:
    await publish(broker, queue, b"one")
    await broker.declare(Topology((Exchange(REQUESTS, "direct"),), (queue,)))
    await depth_becomes(broker, queue.name, 1)


async def test_declaring_otherwise_is_an_error_that_names_the_queue(broker: Broker, queue: Queue) -> None:
    with pytest.raises(BrokerError, match=queue.name):
        await broker.declare(Topology((), (replace(queue, delivery_limit=7),)))
    await broker.declare(Topology((), (queue,)))


async def test_a_missing_queue_is_an_error_that_names_it(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"test\.absent"):
        await broker.queue_depth("test.absent")
    with pytest.raises(BrokerError, match=r"test\.absent"):
        await broker.consume("test.absent", Inbox(), prefetch=1)


@pytest.mark.parametrize("confirm", [True, False])
async def test_without_a_connection_every_call_raises(
    make_broker: Callable[[], Broker], new_client: NewClient, queue: Queue, confirm: bool
) -> None:
    closed = await new_client()
    await closed.close()
    for broker in (make_broker(), closed):
        with pytest.raises(BrokerUnavailable):
            await broker.publish(queue.exchange, queue.routing_key, Message(b"x"), confirm=confirm)
        with pytest.raises(BrokerUnavailable):
            await broker.declare(Topology((), (queue,)))
        with pytest.raises(BrokerUnavailable):
            await broker.consume(queue.name, Inbox(), prefetch=1)
        with pytest.raises(BrokerUnavailable):
            await broker.queue_depth(queue.name)


async def test_closing_twice_is_harmless(broker: Broker) -> None:
    await broker.close()
    await broker.close()
