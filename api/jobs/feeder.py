"""Batch lines out: a bounded window of them in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from api.errors import model_not_found
from api.store import Store
from api.store.records import BatchRecord, PendingItem, UnfinishedItem
from broker.base import Broker, BrokerError, BrokerUnavailable, Message, Unroutable
from schemas.messages import Control, ErrorInfo, Job, Outcome, Result, decode, encode
from schemas.topology import CONTROL, REQUESTS, request_key, request_queue

log = logging.getLogger(__name__)

CONCURRENT_PUBLISHES = 64
WAITING = ("pending",)
IN_FLIGHT = ("dispatched",)
SLICE = 500
"""Lines ended in one transaction."""


class Feeder:
    """Publishes the lines of one batch, and ends those that cannot be published or have no time left. Once `promoted`, lines
    go out as interactive jobs."""

    def __init__(self, broker: Broker, store: Store, batch: BatchRecord, window: int) -> None:
        self._broker = broker
        self._store = store
        self._batch = batch
        self._window = window
        self.promoted = False
        self._gate = asyncio.Semaphore(CONCURRENT_PUBLISHES)

    async def fill(self) -> int:
        """Publish lines until the window is full. Returns how many lines moved on.

        A line counts as dispatched only after the broker confirmed it. A crash in between publishes it again under the
        same job id, and the ledger counts it once. Raises BrokerError, what was confirmed being marked.
        """
        room = self._window - await self._store.items.in_flight(self._batch.id)
        items = await self._store.items.pending(self._batch.id, room) if room > 0 else []
        await self._end([self._result(item, "failed", item.rejected) for item in items if item.rejected])
        await self._publish_all([item for item in items if not item.rejected])
        return len(items)

    async def cancel_in_flight(self) -> None:
        """Tell the workers to stop; unconfirmed, for it is a kindness and repeated."""
        for item in await self._store.items.unfinished(self._batch.id, self._window, states=IN_FLIGHT):
            message = Message(encode(Control(kind="cancel", job=item.job_id)))
            await self._broker.publish(CONTROL, "", message, confirm=False)

    async def end_unfinished(self, outcome: Outcome, states: Sequence[str]) -> None:
        """End the lines in `states` as `outcome`."""
        while items := await self._store.items.unfinished(self._batch.id, SLICE, states=states):
            await self._end([self._result(item, outcome, None) for item in items])

    async def requeue_if_lost(self) -> int:
        """Publish lines in flight again if none of them waits in the broker. Returns how many."""
        items = await self._store.items.unfinished(self._batch.id, self._window, states=IN_FLIGHT)
        for model in {item.model for item in items}:
            if await self._depth(model):
                return 0
        return await self._store.items.requeue(self._batch.id)

    async def _publish_all(self, items: Sequence[PendingItem]) -> None:
        outcomes = await asyncio.gather(*(self._publish(item) for item in items))
        confirmed = [item.job_id for item, error in zip(items, outcomes, strict=True) if error is None]
        lost = [item for item, error in zip(items, outcomes, strict=True) if isinstance(error, Unroutable)]
        if confirmed:
            await self._store.items.mark_dispatched(confirmed)
        await self._end([self._result(item, "failed", model_not_found(item.model).info()) for item in lost])
        for error in outcomes:
            if error is not None and not isinstance(error, Unroutable):
                raise error

    async def _publish(self, item: PendingItem) -> BrokerError | None:
        job = decode(Job, item.message)
        if self.promoted:
            job = msgspec.structs.replace(job, job_class="interactive")
        body = encode(job) if self.promoted else item.message
        async with self._gate:
            try:
                message = Message(body, message_id=item.job_id)
                await self._broker.publish(REQUESTS, request_key(job.model, job.job_class), message)
            except BrokerError as error:
                return error
        return None

    async def _end(self, results: list[Result]) -> None:
        if results:
            await self._store.results.record_many(results)

    async def _depth(self, model: str) -> int:
        try:
            return await self._broker.queue_depth(request_queue(model, "batch").name)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            log.warning("the queue of model %s is gone: %s", model, error)
            return 0

    def _result(self, item: PendingItem | UnfinishedItem, outcome: Outcome, error: ErrorInfo | None) -> Result:
        return Result(
            job=item.job_id,
            model=item.model,
            outcome=outcome,
            job_class="batch",
            owner=self._batch.owner,
            error=error,
            created=float(self._batch.created_at),
            finished=self._store.clock(),
        )
