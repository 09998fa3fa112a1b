"""Frames keep their order and grow when the broker is slow; Results are retried until confirmed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.base import BrokerUnavailable, Message, PublishRejected
from schemas.messages import Delta, Frame, Result, ResumeQuery, Status, decode
from schemas.topology import DEAD, RESULTS
from workers.front.announce import Announcer, RateMeter
from workers.front.frames import FrameSender
from workers.front.results import ResultPublisher


class StubBroker:
    """Keeps what is published; fails or waits as told."""

    def __init__(self, *failures: Exception) -> None:
        self.published: list[tuple[str, str, Message, bool]] = []
        self.failures = list(failures)
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(
        self, exchange: str, routing_key: str, message: Message, *, confirm: bool = True, timeout: float = 5
    ) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.published.append((exchange, routing_key, message, confirm))

    def frames(self, reader: str) -> list[Frame]:
        return [decode(Frame, message.body) for _, key, message, _ in self.published if key == reader]


def delta(offset: int) -> Delta:
    return Delta(job="j", epoch=0, offset=offset, token_ids=[offset])


def result(job: str = "j") -> Result:
    return Result(job=job, model="m", outcome="completed")


def sender(broker: Any, patience: float = 5.0) -> FrameSender:
    return FrameSender(broker, "w", patience=patience)


async def test_frames_go_to_each_reader_unconfirmed() -> None:
    broker = StubBroker()
    frames = sender(broker)
    for reader in ("a", "b", "a"):
        frames.post(reader, delta(0))
    frames.flush()
    await frames.close()
    assert [len(broker.frames(reader)) for reader in ("a", "b")] == [1, 1]
    assert len(broker.frames("a")[0].deltas) == 2
    assert {(exchange, confirm) for exchange, _, _, confirm in broker.published} == {("", False)}


async def test_a_slow_broker_makes_frames_larger_not_more() -> None:
    broker = StubBroker()
    broker.gate.clear()
    frames = sender(broker)
    for offset in range(5):
        frames.post("a", delta(offset))
        frames.flush()
        await asyncio.sleep(0)
    told = asyncio.create_task(frames.send_result("a", result()))
    await asyncio.sleep(0)
    broker.gate.set()
    await told
    assert [[d.offset for d in frame.deltas] for frame in broker.frames("a")] == [[0], [1, 2, 3, 4]]
    assert [len(frame.results) for frame in broker.frames("a")] == [0, 1]


async def test_one_slow_reader_does_not_hold_up_another() -> None:
    broker = StubBroker()
    frames = sender(broker)
    broker.gate.clear()
    frames.post("a", delta(0))
    frames.flush()
    await asyncio.sleep(0)
    gate, broker.gate = broker.gate, asyncio.Event()
    broker.gate.set()
    await frames.send_result("b", result())
    assert (len(broker.frames("a")), len(broker.frames("b"))) == (0, 1)
    gate.set()
    await frames.close()
    assert len(broker.frames("a")) == 1


async def test_a_lost_frame_is_counted_and_its_result_reported() -> None:
    broker = StubBroker(BrokerUnavailable("gone"))
    frames = sender(broker, patience=0.0)
    with pytest.raises(BrokerUnavailable, match="gone"):
        await frames.send_result("a", result())
    assert frames.lost_frames == 1
    await frames.send_query("a", ResumeQuery(job="j", epoch=1))
    assert broker.frames("a")[0].queries == [ResumeQuery(job="j", epoch=1)]


async def test_a_frame_is_tried_again_and_what_follows_waits_for_it() -> None:
    broker = StubBroker(BrokerUnavailable("gone"))
    frames = sender(broker)
    frames.post("a", delta(0))
    frames.flush()
    await asyncio.sleep(0)
    frames.post("a", delta(1))
    await frames.send_result("a", result())
    assert [[d.offset for d in frame.deltas] for frame in broker.frames("a")] == [[0], [1]]
    assert frames.lost_frames == 0


async def test_results_are_retried_until_confirmed() -> None:
    broker = StubBroker(BrokerUnavailable("gone"), PublishRejected("full"), BrokerUnavailable("gone"))
    publisher = ResultPublisher(broker, first_delay=0.001, max_delay=0.002)  # type: ignore[arg-type]
    assert await publisher.publish(result())
    ((exchange, _, message, confirm),) = broker.published
    assert (exchange, message.message_id, confirm) == (RESULTS, "j", True)


async def test_closing_ends_the_retries() -> None:
    broker = StubBroker(*[BrokerUnavailable("gone")] * 3)
    publisher = ResultPublisher(broker, first_delay=60.0)  # type: ignore[arg-type]
    publishing = asyncio.create_task(publisher.publish(result()))
    await asyncio.sleep(0)
    publisher.close()
    async with asyncio.timeout(1):
        assert not await publishing
    assert not await publisher.publish(result())


async def test_dead_letters_say_why() -> None:
    broker = StubBroker()
    publisher = ResultPublisher(broker)  # type: ignore[arg-type]
    letter = Message(b"body", message_id="j", headers={"kept": 1})
    assert await publisher.bury(letter, "bad", attempts=3, source="headrace.requests.m.batch")
    ((exchange, _, message, _),) = broker.published
    assert (exchange, message.body) == (DEAD, b"body")
    told = {"kept": 1, "reason": "bad", "attempts": 3, "source": "headrace.requests.m.batch"}
    assert message.headers.items() >= told.items()


async def test_a_lost_announcement_ends_nothing() -> None:
    broker = StubBroker(BrokerUnavailable("gone"))

    def describe(leaving: bool) -> Status:
        return Status(worker="w", model="m", max_model_len=1, vocab_size=1, leaving=leaving)

    announcer = Announcer(broker, describe)  # type: ignore[arg-type]
    await announcer.announce()
    await announcer.announce(leaving=True)
    assert decode(Status, broker.published[0][2].body).leaving


def test_the_rate_forgets_what_is_older_than_ten_busy_seconds() -> None:
    meter = RateMeter()
    assert meter.observe(0.0, 0) == 0.0
    assert meter.observe(2.0, 200) == 100.0
    assert meter.observe(2.0, 200) == 100.0
    for second in range(1, 11):
        rate = meter.observe(2.0 + second, 200 + 50 * second)
    assert rate == 50.0
