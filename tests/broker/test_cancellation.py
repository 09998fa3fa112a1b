"""The client library confuses cancellation and failure; `bounded` and its neighbours keep them apart."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika.exceptions import ChannelClosed

from broker.amqp.errors import bounded, finish, stop_task
from broker.base import Broker, BrokerUnavailable, Message, Unroutable
from schemas.topology import Queue


async def test_a_call_that_nobody_cancelled_is_unavailable() -> None:
    with pytest.raises(BrokerUnavailable, match="asking"):
        async with bounded("asking", 1):
            raise asyncio.CancelledError


@pytest.mark.parametrize("outcome", [None, ChannelClosed(None, "gone"), asyncio.CancelledError()])
async def test_a_cancellation_is_kept_whatever_the_library_makes_of_it(outcome: BaseException | None) -> None:
    async def library_call() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if outcome is not None:
                raise outcome from None

    async def caller() -> None:
        async with bounded("asking", 10):
            await library_call()

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_errors_that_are_not_the_librarys_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        async with bounded("asking", 1):
            raise ZeroDivisionError


async def test_time_is_bounded() -> None:
    with pytest.raises(BrokerUnavailable, match=r"no answer from RabbitMQ within 0\.01 s"):
        async with bounded("asking", 0.01):
            await asyncio.Event().wait()


async def stubborn(release: asyncio.Event) -> None:
    """Swallows one cancellation."""
    try:
        await release.wait()
    except asyncio.CancelledError:
        await release.wait()


async def test_nobody_waits_for_a_call_that_does_not_end() -> None:
    release = asyncio.Event()
    assert not await finish(stubborn(release), 0.01)
    release.set()
    await asyncio.sleep(0)
    assert await finish(stubborn(release), 1)


async def test_a_task_that_swallows_a_cancellation_is_stopped() -> None:
    task = asyncio.create_task(stubborn(asyncio.Event()))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await stop_task(task)
    assert task.cancelled()


async def test_a_missing_exchange_says_nothing_of_the_publishes_beside_it(broker: Broker, queue: Queue) -> None:
    good = [broker.publish(queue.exchange, queue.routing_key, Message(b"x")) for _ in range(20)]
    bad = broker.publish("test.absent", "", Message(b"x"))
    *outcomes, absent = await asyncio.gather(*good, bad, return_exceptions=True)
    assert isinstance(absent, Unroutable)
    assert {type(outcome) for outcome in outcomes} <= {type(None), BrokerUnavailable}
