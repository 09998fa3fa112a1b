from __future__ import annotations

import asyncio

import pytest

from broker.base import Broker, Delivery, Message
from schemas.topology import DEAD, Queue
from tests.broker.conftest import NewClient
from tests.broker.inbox import Inbox, depth_becomes, publish, until


async def test_messages_come_in_order(broker: Broker, queue: Queue) -> None:
    bodies = [b"%d" % number for number in range(200)]
    await publish(broker, queue, *bodies)
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=7)
    assert await inbox.bodies(200) == bodies
    await depth_becomes(broker, queue.name, 0)


async def test_prefetch_bounds_what_is_unacknowledged(broker: Broker, queue: Queue) -> None:
    await publish(broker, queue, *(b"%d" % number for number in range(5)))
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=2)
    first, second = await inbox.take(2)
    await depth_becomes(broker, queue.name, 3)
    assert inbox.waiting == 0
    await second.ack()
    third = await inbox.next()
    assert third.message.body == b"2"
    await depth_becomes(broker, queue.name, 2)
    assert inbox.waiting == 0
    await first.ack()
    await third.ack()
    assert await inbox.bodies(2) == [b"3", b"4"]


async def test_prefetch_must_be_positive(broker: Broker, queue: Queue) -> None:
    with pytest.raises(ValueError, match="prefetch"):
        await broker.consume(queue.name, Inbox(), prefetch=0)


async def test_handlers_run_concurrently(broker: Broker, queue: Queue) -> None:
    meeting = asyncio.Barrier(3)
    done = Inbox()

    async def handler(delivery: Delivery) -> None:
        await meeting.wait()
        await done(delivery)

    await broker.consume(queue.name, handler, prefetch=3)
    await publish(broker, queue, b"a", b"b", b"c")
    assert sorted(await done.bodies(3)) == [b"a", b"b", b"c"]


async def test_consumers_share_a_queue(new_client: NewClient, queue: Queue) -> None:
    inboxes = [Inbox(), Inbox()]
    for inbox in inboxes:
        await (await new_client()).consume(queue.name, inbox, prefetch=1)
    await publish(await new_client(), queue, b"a", b"b")
    deliveries = [await inbox.next() for inbox in inboxes]
    assert sorted(delivery.message.body for delivery in deliveries) == [b"a", b"b"]


async def test_a_requeued_message_comes_back_counted(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await publish(broker, queue, b"again", b"later")
    for count in range(3):
        delivery = await inbox.next()
        assert (delivery.message.body, delivery.delivery_count) == (b"again", count)
        await (delivery.ack() if count == 2 else delivery.reject(requeue=True))
    later = await inbox.next()
    assert (later.message.body, later.delivery_count) == (b"later", 0)


async def test_over_the_delivery_limit_it_is_a_dead_letter(broker: Broker, queue: Queue) -> None:
    inbox, dead = Inbox(), Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await broker.consume(DEAD, dead, prefetch=1)
    await publish(broker, queue, b"poison")
    for _ in range(3):
        await (await inbox.next()).reject(requeue=True)
    letter = await dead.next()
    assert letter.message.body == b"poison"
    assert letter.delivery_count == 0
    assert letter.message.headers["x-first-death-reason"] == "delivery_limit"
    assert letter.message.headers["x-first-death-queue"] == queue.name
    assert inbox.waiting == 0


async def test_a_message_rejected_for_good_is_a_dead_letter(broker: Broker, queue: Queue) -> None:
    inbox, dead = Inbox(), Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await broker.consume(DEAD, dead, prefetch=1)
    message = Message(b"refused", message_id="7", headers={"kept": "yes"})
    await broker.publish(queue.exchange, queue.routing_key, message)
    await (await inbox.next()).reject(requeue=False)
    letter = (await dead.next()).message
    assert (letter.body, letter.message_id, letter.headers["kept"]) == (b"refused", "7", "yes")
    assert letter.headers["x-first-death-reason"] == "rejected"
    assert letter.headers["x-first-death-queue"] == queue.name
    assert letter.headers["x-first-death-exchange"] == queue.exchange


async def test_without_a_dead_letter_queue_a_rejected_message_is_gone(broker: Broker, short_queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(short_queue.name, inbox, prefetch=1)
    await publish(broker, short_queue, b"refused", b"next")
    await (await inbox.next()).reject(requeue=False)
    assert await inbox.bodies(1) == [b"next"]
    assert await broker.queue_depth(DEAD) == 0


async def test_settling_twice_counts_once(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await publish(broker, queue, b"a", b"b")
    first = await inbox.next()
    await first.ack()
    await first.ack()
    await first.reject(requeue=True)
    second = await inbox.next()
    assert (second.message.body, second.delivery_count) == (b"b", 0)
    assert inbox.waiting == 0


async def test_closing_gives_back_in_order(new_client: NewClient, queue: Queue) -> None:
    holder, reader = await new_client(), await new_client()
    held, read = Inbox(), Inbox()
    await publish(reader, queue, b"a", b"b", b"c")
    await holder.consume(queue.name, held, prefetch=2)
    kept = await held.take(2)
    await holder.close()
    await reader.consume(queue.name, read, prefetch=10)
    deliveries = await read.take(3)
    assert [delivery.message.body for delivery in deliveries] == [b"a", b"b", b"c"]
    assert [delivery.delivery_count for delivery in deliveries] == [1, 1, 0]
    await kept[0].ack()  # too late, and harmless
    await kept[1].reject(requeue=True)
    for delivery in deliveries:
        await delivery.ack()
    await depth_becomes(reader, queue.name, 0)


async def test_a_cancelled_consumer_takes_nothing_new_and_keeps_what_it_has(
    new_client: NewClient, queue: Queue
) -> None:
    broker, other = await new_client(), await new_client()
    held, read = Inbox(), Inbox()
    subscription = await broker.consume(queue.name, held, prefetch=2)
    assert subscription.queue == queue.name
    await publish(broker, queue, b"a", b"b")
    first, second = await held.take(2)
    await subscription.cancel()
    await subscription.cancel()
    await publish(broker, queue, b"c")
    await other.consume(queue.name, read, prefetch=10)
    assert await read.bodies(1) == [b"c"]
    await first.ack()
    await second.reject(requeue=True)
    again = await read.next()
    assert (again.message.body, again.delivery_count) == (b"b", 1)
    assert held.waiting == 0
    assert read.waiting == 0


async def test_what_a_cancelled_consumer_holds_goes_back_on_close(new_client: NewClient, queue: Queue) -> None:
    broker, other = await new_client(), await new_client()
    held, read = Inbox(), Inbox()
    subscription = await broker.consume(queue.name, held, prefetch=1)
    await publish(broker, queue, b"a")
    await held.next()
    await subscription.cancel()
    await broker.close()
    await other.consume(queue.name, read, prefetch=1)
    again = await read.next()
    assert (again.message.body, again.delivery_count) == (b"a", 1)


async def test_a_failing_handler_gives_its_message_back(
    broker: Broker, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()

    async def fails_at_first(delivery: Delivery) -> None:
        if delivery.delivery_count == 0:
            raise ValueError("no database")
        await inbox(delivery)

    await broker.consume(queue.name, fails_at_first, prefetch=1)
    await publish(broker, queue, b"a")
    assert (await inbox.next()).delivery_count == 1
    assert "no database" in caplog.text


async def test_closing_ends_running_handlers(broker: Broker, queue: Queue) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(_: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await broker.consume(queue.name, endless, prefetch=1)
    await publish(broker, queue, b"a")
    await started.wait()
    await broker.close()
    assert ended.is_set()


async def test_a_handler_may_close_its_broker(new_client: NewClient, queue: Queue) -> None:
    broker, other = await new_client(), await new_client()
    closed = asyncio.Event()

    async def closes(delivery: Delivery) -> None:
        await delivery.ack()
        await broker.close()
        closed.set()

    await broker.consume(queue.name, closes, prefetch=1)
    await publish(other, queue, b"a")
    async with asyncio.timeout(10):
        await closed.wait()

    async def empty() -> bool:
        return await other.queue_depth(queue.name) == 0

    await until(empty)
