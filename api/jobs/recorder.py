"""Results in: from the results queue into the ledger.

A Result is acknowledged only after the transaction that wrote it has committed; what comes twice counts once. While the
database is away, Results are held unacknowledged and tried again with growing pauses. They are not handed back to the
queue in the meantime: RabbitMQ 4 drops a message from a quorum queue after 20 returns, and nothing here may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from api.jobs.backoff import Backoff
from api.store import Store, StoreRejected, StoreUnavailable
from broker.base import PUBLISH_TIMEOUT, Broker, BrokerError, Delivery, Subscription
from broker.dead_letters import dead_letter
from schemas.messages import Result, decode
from schemas.topology import DEAD, DEAD_KEY, RESULTS

log = logging.getLogger(__name__)

BATCH_SIZE = 64
BATCH_BYTES = 32 << 20
"""Of Results in one transaction, give or take one: those of embeddings may have 6 MB each."""
LINGER = 0.005
"""Seconds that a transaction waits for more Results to share its commit."""
PREFETCH = 4 * BATCH_SIZE


@dataclass(slots=True)
class RecorderCounts:
    """What a recorder has done since it started; `failures` are transactions that had to be tried again."""

    recorded: int = 0
    duplicates: int = 0
    dead: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A decoded Result with the delivery to acknowledge."""

    result: Result
    delivery: Delivery


class Recorder:
    """Consumes the results queue into the store. Several may run: the ledger's primary key keeps each count single."""

    def __init__(self, broker: Broker, store: Store) -> None:
        self._broker = broker
        self._store = store
        self._arrived: asyncio.Queue[_Held] = asyncio.Queue(PREFETCH)
        self._held: list[_Held] = []
        self._stopping = False
        self.counts = RecorderCounts()

    async def run(self) -> None:
        """Record until cancelled; then what is not yet recorded goes back to the queue."""
        subscription = await self._subscribe()
        try:
            while True:
                await self._gather()
                await self._record(list(self._held))
        finally:
            await self._stop(subscription)

    async def _subscribe(self) -> Subscription:
        backoff = Backoff()
        while True:
            try:
                return await self._broker.consume(RESULTS, self._receive, prefetch=PREFETCH)
            except BrokerError as error:
                log.warning("cannot consume %s yet: %s", RESULTS, error)
                await backoff.sleep()

    async def _receive(self, delivery: Delivery) -> None:
        if self._stopping:
            await _give_back([delivery])
            return
        try:
            result = decode(Result, delivery.message.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await self._bury(delivery, f"malformed Result: {error}")
        else:
            await self._arrived.put(_Held(result, delivery))

    async def _gather(self) -> None:
        """Hold at least one Result; up to BATCH_SIZE or BATCH_BYTES of those there or coming within LINGER."""
        self._held.append(await self._arrived.get())
        size = len(self._held[0].delivery.message.body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while len(self._held) < BATCH_SIZE and size < BATCH_BYTES:
                    self._held.append(await self._arrived.get())
                    size += len(self._held[-1].delivery.message.body)

    async def _record(self, held: Sequence[_Held]) -> None:
        """Write and acknowledge. Where one Result's values are refused, each is tried alone and that one is buried."""
        try:
            new = await self._write([one.result for one in held])
        except StoreRejected as error:
            if len(held) == 1:
                await self._bury(held[0].delivery, f"refused by the database: {error}")
                self._held.remove(held[0])
            else:
                for one in held:
                    await self._record([one])
        else:
            self.counts.recorded += sum(new)
            self.counts.duplicates += len(new) - sum(new)
            for one in held:
                await _acknowledge(one.delivery)
                self._held.remove(one)

    async def _write(self, results: list[Result]) -> list[bool]:
        """One transaction, tried until it commits. Raises StoreRejected."""
        backoff = Backoff()
        while True:
            try:
                return await self._store.results.record_many(results)
            except StoreUnavailable as error:
                self.counts.failures += 1
                log.warning("%d results wait for the database: %s", len(results), error)
                await backoff.sleep()

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        """To the dead-letter queue with the reason; acknowledged once it is safe there."""
        self.counts.dead += 1
        log.error("dead-lettering a result: %s", reason)
        letter = dead_letter(delivery.message, reason=reason, attempts=delivery.delivery_count + 1, source=RESULTS)
        backoff = Backoff()
        while True:
            try:
                await self._broker.publish(DEAD, DEAD_KEY, letter)
                break
            except BrokerError as error:
                log.warning("cannot dead-letter yet: %s", error)
                await backoff.sleep()
        await _acknowledge(delivery)

    async def _stop(self, subscription: Subscription) -> None:
        self._stopping = True
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await subscription.cancel()
        except (BrokerError, TimeoutError) as error:
            log.warning("the consumer did not stop cleanly: %s", error)
        waiting = self._held + [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
        self._held = []
        await _give_back([one.delivery for one in waiting])


async def _acknowledge(delivery: Delivery) -> None:
    """On failure the broker delivers again, and the ledger knows the job."""
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT):
            await delivery.ack()
    except (BrokerError, TimeoutError) as error:
        log.warning("a recorded result was not acknowledged and will come again: %s", error)


async def _give_back(deliveries: Sequence[Delivery]) -> None:
    """To the queue again; where that fails the broker does it when the connection ends."""
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT):
            for delivery in deliveries:
                await delivery.reject(requeue=True)
    except (BrokerError, TimeoutError) as error:
        log.warning("%d results stay unacknowledged until the connection ends: %s", len(deliveries), error)
