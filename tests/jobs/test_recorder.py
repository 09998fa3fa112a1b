"""The recorder: every Result into the ledger, none acknowledged before it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from api.jobs.recorder import PREFETCH, Recorder
from api.store import Store, StoreUnavailable, UsageTotal
from broker.base import BrokerUnavailable, Message
from broker.memory import MemoryBroker, MemoryHub
from schemas.messages import Result, encode
from schemas.topology import DEAD, RESULTS, RESULTS_KEY
from tests.jobs.stub import FaultyBroker, connected, eventually, running, swallow
from tests.store.databases import result_of


async def publish(broker: MemoryBroker, *results: Result | bytes) -> None:
    for result in results:
        body = result if isinstance(result, bytes) else encode(result)
        await broker.publish(RESULTS, RESULTS_KEY, Message(body))


async def until_settled(recorder: Recorder, count: int) -> None:
    """Until `count` results have been dealt with."""
    counts = recorder.counts

    async def settled() -> bool:
        return counts.recorded + counts.duplicates + counts.dead >= count

    await eventually(settled)


async def unacknowledged(hub: MemoryHub, broker: MemoryBroker) -> int:
    """What the broker would deliver again if this connection ended; ends it."""
    await broker.close()
    other = await connected(hub)
    try:
        return await other.queue_depth(RESULTS)
    finally:
        await other.close()


class Unsteady:
    """Stands in for `record_many`: fails as often as told, holds when the gate is shut, and counts transactions."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> None:
        self.failures = failures
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self._record_many = store.results.record_many
        monkeypatch.setattr(store.results, "record_many", self)

    async def __call__(self, batch: Sequence[Result]) -> list[bool]:
        self.calls += 1
        self.reached.set()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("gone")
        await self.gate.wait()
        return await self._record_many(batch)


async def test_results_reach_the_ledger_once_each(hub: MemoryHub, broker: MemoryBroker, store: Store) -> None:
    direct = result_of("a", prompt_tokens=3)
    await publish(broker, direct, result_of("b", "failed"), direct)
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 3)
    assert (recorder.counts.recorded, recorder.counts.duplicates) == (2, 1)
    assert await store.results.get("me", "a") == direct
    assert await store.results.usage("me") == [UsageTotal("tiny", 2, 3, 0, 0)]
    assert await unacknowledged(hub, broker) == 0


async def test_results_that_queue_up_share_transactions(
    broker: MemoryBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = Unsteady(store, monkeypatch)
    await publish(broker, *(result_of(f"j{number}") for number in range(640)))
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 640)
    assert unsteady.calls <= 20
    assert (await store.results.usage("me"))[0].jobs == 640


async def test_large_results_share_none(broker: MemoryBroker, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    unsteady = Unsteady(store, monkeypatch)
    results = [result_of(f"j{number}") for number in range(10)]
    monkeypatch.setattr("api.jobs.recorder.BATCH_BYTES", len(encode(results[0])))
    await publish(broker, *results)
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 10)
    assert unsteady.calls == 10


async def test_nothing_is_acknowledged_before_the_commit(
    hub: MemoryHub, broker: MemoryBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = Unsteady(store, monkeypatch)
    unsteady.gate.clear()
    await publish(broker, result_of("a"), result_of("b"))
    async with running(Recorder(broker, store).run):
        await unsteady.reached.wait()
        assert await unacknowledged(hub, broker) == 2


async def test_results_wait_for_a_database_that_is_away(
    hub: MemoryHub, broker: MemoryBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = Unsteady(store, monkeypatch, failures=2)
    await publish(broker, result_of("a"))
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 1)
    assert (unsteady.calls, recorder.counts.failures, recorder.counts.recorded) == (3, 2, 1)
    assert await unacknowledged(hub, broker) == 0


async def test_stopping_gives_back_what_is_not_recorded(
    hub: MemoryHub, broker: MemoryBroker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = Unsteady(store, monkeypatch, failures=10**6)
    await publish(broker, *(result_of(f"j{number}") for number in range(PREFETCH + 10)))
    async with running(Recorder(broker, store).run):
        await unsteady.reached.wait()
    monkeypatch.undo()
    assert await broker.queue_depth(RESULTS) == PREFETCH + 10
    again = Recorder(broker, store)
    async with running(again.run):
        await until_settled(again, PREFETCH + 10)
    assert again.counts.recorded == PREFETCH + 10


@pytest.mark.parametrize(
    "body", [b"{", b'{"job": "a"}', b'{"job": "\xff"}', b"[]", b'{"job":"a","model":"m","outcome":"?"}']
)
async def test_a_malformed_result_is_dead_lettered_with_its_reason(
    hub: MemoryHub, broker: MemoryBroker, store: Store, body: bytes
) -> None:
    await publish(broker, body, result_of("good"))
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 2)
        letter = await next_of(hub, DEAD)
    assert letter.body == body
    assert str(letter.headers["reason"]).startswith("malformed Result: ")
    assert letter.headers["source"] == RESULTS
    assert (recorder.counts.dead, recorder.counts.recorded) == (1, 1)
    assert await unacknowledged(hub, broker) == 0


async def test_values_that_the_database_refuses_do_not_hold_up_the_others(
    hub: MemoryHub, broker: MemoryBroker, store: Store
) -> None:
    bad = result_of("bad", prompt_tokens=2**63)
    await publish(broker, result_of("a"), bad, result_of("c"))
    recorder = Recorder(broker, store)
    async with running(recorder.run):
        await until_settled(recorder, 3)
        letter = await next_of(hub, DEAD)
    assert letter.body == encode(bad)
    assert (recorder.counts.dead, recorder.counts.recorded) == (1, 2)
    assert (await store.results.usage("me"))[0].jobs == 2


async def test_a_dead_letter_is_acknowledged_only_once_it_is_safe(
    hub: MemoryHub, broker: MemoryBroker, store: Store
) -> None:
    await publish(broker, b"{")
    faulty = FaultyBroker(broker)
    faulty.faults = [BrokerUnavailable("gone"), BrokerUnavailable("gone")]
    async with running(Recorder(faulty, store).run):
        assert (await next_of(hub, DEAD)).body == b"{"
    assert faulty.faults == []


async def test_the_recorder_waits_for_its_broker(hub: MemoryHub, store: Store, broker: MemoryBroker) -> None:
    late = await connected(hub)
    await late.close()
    recorder = Recorder(late, store)
    async with running(recorder.run):
        await publish(broker, result_of("a"))
        await late.connect()
        await until_settled(recorder, 1)
    await late.close()


async def next_of(hub: MemoryHub, queue: str) -> Message:
    """The next message of a queue, over a connection of its own."""
    connection = await connected(hub)
    try:
        return (await swallow(connection, queue, 1))[0]
    finally:
        await connection.close()
