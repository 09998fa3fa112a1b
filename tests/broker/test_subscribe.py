from __future__ import annotations

import asyncio

import pytest

from broker.base import Broker, BrokerError, Message, Unroutable
from broker.handling import BODY_BUFFER, BodyPump, TaskSet
from schemas.topology import Exchange
from tests.broker.conftest import NewClient
from tests.broker.inbox import BodyInbox


async def test_a_reply_queue_is_addressed_by_name(new_client: NewClient) -> None:
    reader, writer = await new_client(), await new_client()
    inbox = BodyInbox()
    subscription = await reader.subscribe(inbox)
    await writer.publish("", subscription.queue, Message(b"confirmed"))
    await writer.publish("", subscription.queue, Message(b"unconfirmed"), confirm=False)
    assert sorted(await inbox.take(2)) == [b"confirmed", b"unconfirmed"]


async def test_reply_queues_have_names_of_their_own(broker: Broker) -> None:
    inboxes = [BodyInbox() for _ in range(3)]
    names = [(await broker.subscribe(inbox)).queue for inbox in inboxes]
    assert len(set(names)) == 3
    for name in names:
        await broker.publish("", name, Message(name.encode()), confirm=False)
    assert [await inbox.take(1) for inbox in inboxes] == [[name.encode()] for name in names]


async def test_bodies_come_in_order_one_at_a_time(broker: Broker) -> None:
    seen: list[bytes] = []
    busy, done = 0, asyncio.Event()

    async def handler(body: bytes) -> None:
        nonlocal busy
        busy += 1
        assert busy == 1
        await asyncio.sleep(0)
        seen.append(body)
        busy -= 1
        if len(seen) == 500:
            done.set()

    subscription = await broker.subscribe(handler)
    bodies = [b"%d" % number for number in range(500)]
    for body in bodies:
        await broker.publish("", subscription.queue, Message(body), confirm=False)
    async with asyncio.timeout(10):
        await done.wait()
    assert seen == bodies


async def test_a_fanout_reaches_every_subscriber(new_client: NewClient, fanout: Exchange) -> None:
    inboxes = [BodyInbox(), BodyInbox()]
    for inbox in inboxes:
        await (await new_client()).subscribe(inbox, exchange=fanout.name)
    await (await new_client()).publish(fanout.name, "", Message(b"all"))
    assert [await inbox.take(1) for inbox in inboxes] == [[b"all"], [b"all"]]


async def test_a_fanout_that_is_not_there_is_an_error(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"test\.absent"):
        await broker.subscribe(BodyInbox(), exchange="test.absent")


async def test_cancelling_takes_the_queue_away(broker: Broker, fanout: Exchange) -> None:
    inbox = BodyInbox()
    subscription = await broker.subscribe(inbox, exchange=fanout.name)
    await broker.publish(fanout.name, "", Message(b"before"))
    assert await inbox.take(1) == [b"before"]
    await subscription.cancel()
    await unroutable(broker, fanout.name, "")
    await unroutable(broker, "", subscription.queue)
    assert inbox.waiting == 0


async def unroutable(broker: Broker, exchange: str, routing_key: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await broker.publish(exchange, routing_key, Message(b"after"))
            except Unroutable:
                return
            await asyncio.sleep(0.02)


async def test_closing_takes_the_queue_away(new_client: NewClient) -> None:
    reader, writer = await new_client(), await new_client()
    subscription = await reader.subscribe(BodyInbox())
    await reader.close()
    await unroutable(writer, "", subscription.queue)


async def test_a_handler_that_fails_gets_the_next_body(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    inbox = BodyInbox()

    async def handler(body: bytes) -> None:
        if body == b"bad":
            raise ValueError("malformed")
        await inbox(body)

    subscription = await broker.subscribe(handler)
    for body in (b"bad", b"good"):
        await broker.publish("", subscription.queue, Message(body))
    assert await inbox.take(1) == [b"good"]
    assert "malformed" in caplog.text


async def test_a_handler_may_cancel_its_subscription(broker: Broker) -> None:
    cancelled = asyncio.Event()

    async def handler(_: bytes) -> None:
        await subscription.cancel()
        cancelled.set()

    subscription = await broker.subscribe(handler)
    await broker.publish("", subscription.queue, Message(b"stop"))
    async with asyncio.timeout(10):
        await cancelled.wait()


async def test_the_buffer_of_a_slow_handler_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    inbox, tasks = BodyInbox(), TaskSet()
    pump = BodyPump(inbox)
    for number in range(BODY_BUFFER + 3):
        pump.put(b"%d" % number)
    pump.start(tasks)
    assert await inbox.take(BODY_BUFFER) == [b"%d" % number for number in range(BODY_BUFFER)]
    assert pump.dropped == 3
    assert inbox.waiting == 0
    assert caplog.text.count("transient messages") == 2
    await tasks.cancel()
