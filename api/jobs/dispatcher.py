"""Finds open batches, leases them, and runs each in a task of its own.

Several dispatchers may run on one database. A lease in the batch's row says which of them works on it; it is renewed
while its holder lives and passes to another when it does not. Their clocks should agree to within a second or two.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from api.jobs.backoff import Backoff
from api.jobs.batch_run import BatchRun, BatchSettings
from api.jobs.lines import ParseBody
from api.jobs.output import RenderBody
from api.store import BatchRecord, Store, StoreError, StoreUnavailable
from broker.base import Broker

log = logging.getLogger(__name__)

LEASE = 15.0
MAX_BATCHES = 16
"""Batches worked on at a time; the others wait, oldest first."""
PURGE_EVERY = 60.0
STOP_TIMEOUT = 5.0


class Dispatcher:
    """Batch lines out to the request queues, their results collected into files.

    `parse` is `api.batch_lines.job_from_line`, `render` is `api.batch_lines.body_from_line`.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        *,
        parse: ParseBody,
        render: RenderBody,
        settings: BatchSettings | None = None,
        lease: float = LEASE,
    ) -> None:
        self._broker = broker
        self._store = store
        self._parse = parse
        self._render = render
        self._settings = settings or BatchSettings()
        self._lease = lease
        self._worker = secrets.token_hex(16)
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._renewed = self._purged = float("-inf")

    async def run(self) -> None:
        """Work until cancelled; then the leases are given up for another to take."""
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._tick()
                    backoff.reset()
                except StoreUnavailable as error:
                    log.warning("the dispatcher waits for the database: %s", error)
                    await backoff.sleep()
                await asyncio.sleep(self._settings.poll)
        finally:
            await self._stop()

    async def _tick(self) -> None:
        self._collect()
        if time.monotonic() >= self._renewed + self._lease / 3:
            await self._renew()
        for batch in await self._store.batches.claim(self._worker, self._lease, MAX_BATCHES - len(self._runs)):
            self._start(batch)
        if time.monotonic() >= self._purged + PURGE_EVERY:
            self._purged = time.monotonic()
            await self._store.files.purge()
            await self._store.keys.purge()
            await self._store.responses.purge()

    def _start(self, batch: BatchRecord) -> None:
        if batch.id in self._runs:
            # A lease that ran out under a stalled event loop, and was claimed anew: its run is still here.
            return
        log.info("batch %s: taken up as %s", batch.id, batch.status)
        run = BatchRun(
            self._broker,
            self._store,
            batch,
            worker=self._worker,
            parse=self._parse,
            render=self._render,
            settings=self._settings,
        )
        self._runs[batch.id] = asyncio.create_task(run.run(), name=batch.id)

    def _collect(self) -> None:
        """Forget runs that ended. One that crashed keeps its lease till the end, which spaces out the attempts."""
        for batch_id, task in list(self._runs.items()):
            if not task.done():
                continue
            del self._runs[batch_id]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("batch %s: the run failed and will be tried again", batch_id, exc_info=error)

    async def _renew(self) -> None:
        """Extend the leases; a run whose lease another has taken is stopped."""
        self._renewed = time.monotonic()
        if not self._runs:
            return
        held = await self._store.batches.renew(self._worker, self._lease, list(self._runs))
        for batch_id in self._runs.keys() - held:
            log.warning("batch %s: the lease is lost", batch_id)
            self._runs[batch_id].cancel()

    async def _stop(self) -> None:
        for task in self._runs.values():
            task.cancel()
        await asyncio.gather(*self._runs.values(), return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                for batch_id in self._runs:
                    await self._store.batches.release(self._worker, batch_id)
        except (StoreError, TimeoutError) as error:
            log.warning("leases are kept until they end: %s", error)
