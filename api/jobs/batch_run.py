"""One batch from validation to its end, as far as this process holds its lease.

Everything that matters is in the store: a run can be killed anywhere and another begins where the store stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Literal

from api.jobs.backoff import Backoff
from api.jobs.feeder import IN_FLIGHT, WAITING, Feeder
from api.jobs.intake import Intake, IntakeLimits
from api.jobs.lines import ParseBody
from api.jobs.output import OutputWriter, RenderBody
from api.store import BatchError, BatchRecord, LeaseLost, Store, StoreUnavailable
from api.store.records import OPEN_STATUSES, EndStatus
from broker.base import Broker, BrokerError

log = logging.getLogger(__name__)

RESERVE = 0.1
"""Of a batch's window: kept back at its end, and before so much has passed its pace says little."""
CANCEL_EVERY = 2.0
"""Seconds between reminders to the workers while a cancelled batch drains: a line may have reached one only since."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a dispatcher works. Seconds, except `window`: the most lines of one batch in flight.

    `drain`: how long a cancelled or expired batch waits for the results of lines in flight. `stall`: without any result
    for so long, lines in flight which no queue holds are published again.
    """

    window: int = 256
    poll: float = 0.2
    drain: float = 30.0
    stall: float = 600.0
    limits: IntakeLimits = field(default_factory=IntakeLimits)


class BatchRun:
    """Takes one leased batch as far as it goes. `worker` is the lease's owner."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        batch: BatchRecord,
        *,
        worker: str,
        parse: ParseBody,
        render: RenderBody,
        settings: BatchSettings,
    ) -> None:
        self._store = store
        self._batch = batch
        self._worker = worker
        self._parse = parse
        self._render = render
        self._settings = settings
        self._feeder = Feeder(broker, store, batch, settings.window)
        self._reminded = 0.0
        self._ended, self._ended_at = -1, 0.0

    async def run(self) -> None:
        """Until the batch has ended. While the store or the broker is away, tries again with growing pauses."""
        backoff = Backoff()
        resumed = False
        while True:
            try:
                if not resumed:
                    await self._store.items.requeue(self._batch.id)
                    resumed = True
                batch = await self._store.batches.get(self._batch.owner, self._batch.id)
                if batch.status not in OPEN_STATUSES:
                    return
                moved = await self._advance(batch)
                backoff.reset()
            except LeaseLost:
                log.warning("batch %s: the lease is lost", self._batch.id)
                return
            except (StoreUnavailable, BrokerError) as error:
                log.warning("batch %s waits: %s", self._batch.id, error)
                await backoff.sleep()
            else:
                await asyncio.sleep(0 if moved else self._settings.poll)

    async def _advance(self, batch: BatchRecord) -> bool:
        """One step. Returns whether there may be more to do at once."""
        if batch.status == "cancelling":
            return await self._wind_down(batch, "cancelled", batch.cancelling_at or batch.created_at)
        if batch.status == "finalizing":
            return await self._finish(batch, "completed")
        expired = self._store.clock() >= batch.expires_at
        if batch.status == "validating":
            return await (self._expire_unread(batch) if expired else self._validate(batch))
        if expired:
            return await self._wind_down(batch, "expired", batch.expires_at)
        if _all_ended(batch):
            return await self._store.batches.finalize(self._worker, batch.id)
        await self._promote_if_late(batch)
        await self._look_for_lost(batch)
        return await self._feeder.fill() > 0

    async def _promote_if_late(self, batch: BatchRecord) -> None:
        """Where its lines will not all have ended in time at the pace so far, they go out as interactive jobs; those that
        wait as batch jobs go out again. A line that runs twice counts once."""
        if not self._feeder.promoted and slack(batch, self._store.clock()) < 0:
            self._feeder.promoted = True
            again = await self._store.items.requeue(batch.id)
            log.warning("batch %s is late: its lines are interactive jobs now, %d go out again", batch.id, again)

    async def _validate(self, batch: BatchRecord) -> bool:
        intake = Intake(self._store, batch, self._worker, self._parse, self._settings.limits)
        total, errors = await intake.run()
        if errors:
            return await self._store.batches.fail(self._worker, batch.id, errors)
        return await self._store.batches.begin(self._worker, batch.id, total)

    async def _expire_unread(self, batch: BatchRecord) -> bool:
        fault = BatchError(code="batch_expired", message="The batch expired before its input was read.")
        return await self._store.batches.fail(self._worker, batch.id, [fault])

    async def _wind_down(self, batch: BatchRecord, status: Literal["expired", "cancelled"], since: int) -> bool:
        """Nothing more is published; what is in flight has until `drain` seconds after `since` to come in."""
        if batch.in_progress_at is None or _all_ended(batch):
            return await self._finish(batch, status)
        await self._feeder.end_unfinished(status, WAITING)
        flying = await self._store.items.in_flight(batch.id)
        if flying and self._store.clock() < since + self._settings.drain:
            await self._remind()
            return False
        await self._feeder.end_unfinished(status, IN_FLIGHT)
        return True

    async def _remind(self) -> None:
        if time.monotonic() >= self._reminded + CANCEL_EVERY:
            await self._feeder.cancel_in_flight()
            self._reminded = time.monotonic()

    async def _finish(self, batch: BatchRecord, status: EndStatus) -> bool:
        """Write the files, then end the batch and show them, in one transaction."""
        writer = OutputWriter(self._store, batch, self._render)
        files: dict[str, str | None] = {"output_file_id": None, "error_file_id": None}
        ended = False
        try:
            if batch.completed:
                files["output_file_id"] = await writer.write(completed=True)
            if batch.failed:
                files["error_file_id"] = await writer.write(completed=False)
            ended = await self._store.batches.finish(self._worker, batch, status, files)
        finally:
            if not ended:
                await self._discard(files)
        return ended

    async def _discard(self, files: dict[str, str | None]) -> None:
        """Written in vain: the lease was lost, or the store went away. (Purged later where even this fails.)"""
        for file_id in files.values():
            if file_id is not None:
                await self._store.files.discard(file_id)

    async def _look_for_lost(self, batch: BatchRecord) -> None:
        ended, now = batch.completed + batch.failed, time.monotonic()
        if ended != self._ended:
            self._ended, self._ended_at = ended, now
        elif now >= self._ended_at + self._settings.stall:
            self._ended_at = now
            if lost := await self._feeder.requeue_if_lost():
                log.warning(
                    "batch %s: no result for %.0f s; %d lines go out again", batch.id, self._settings.stall, lost
                )


def slack(batch: BatchRecord, now: float) -> float:
    """Seconds that a batch has to spare, a part of its window kept back, if it goes on as it went so far. Where no line has
    ended, or hardly any time has passed, there is no pace to go by."""
    reserve = RESERVE * (batch.expires_at - batch.created_at)
    ended = batch.completed + batch.failed
    spent = now - (batch.in_progress_at or batch.created_at)
    needed = (batch.total - ended) * spent / ended if ended and spent > reserve else 0.0
    return batch.expires_at - now - reserve - needed


def _all_ended(batch: BatchRecord) -> bool:
    return batch.completed + batch.failed >= batch.total
