"""The lines of a batch on their way: pending ─► dispatched ─► done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import RowMapping, delete, func, insert, select, update

from api.store.database import Database, Transaction
from api.store.errors import LeaseLost
from api.store.records import EndedItem, NewItem, PendingItem, UnfinishedItem
from api.store.results import JOB_TOKENS, result_from_row
from api.store.tables import batch_items, batches, results, usage
from schemas.messages import ErrorInfo


class Items:
    """Batch lines, read and written in slices: a batch may have 50,000."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def clear(self, worker: str, batch_id: str) -> None:
        """Forget what an interrupted validation left. Raises LeaseLost."""
        async with self._database.write() as transaction:
            await _hold_lease(transaction, worker, batch_id)
            await transaction.execute(delete(batch_items).where(batch_items.c.batch_id == batch_id))

    async def add(self, worker: str, batch_id: str, items: Sequence[NewItem]) -> None:
        """Insert validated lines, pending. Raises LeaseLost."""
        rows = [_row(batch_id, item) for item in items]
        async with self._database.write() as transaction:
            await _hold_lease(transaction, worker, batch_id)
            await transaction.execute(insert(batch_items), rows)

    async def pending(self, batch_id: str, limit: int) -> list[PendingItem]:
        """The first `limit` lines which were not dispatched."""
        columns = (batch_items.c.line, batch_items.c.job_id, batch_items.c.model)
        query = select(*columns, batch_items.c.message, batch_items.c.rejected)
        query = query.where(batch_items.c.batch_id == batch_id, batch_items.c.state == "pending")
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query.order_by(batch_items.c.line).limit(limit))).mappings().all()
        return [_pending(row) for row in rows]

    async def in_flight(self, batch_id: str) -> int:
        """How many lines are dispatched without a result."""
        query = select(func.count()).where(batch_items.c.batch_id == batch_id, batch_items.c.state == "dispatched")
        async with self._database.read() as transaction:
            return int((await transaction.execute(query)).scalar_one())

    async def mark_dispatched(self, job_ids: Sequence[str]) -> None:
        """The broker confirmed these. One whose result was quicker stays done."""
        pending = (batch_items.c.job_id.in_(job_ids), batch_items.c.state == "pending")
        async with self._database.write() as transaction:
            await transaction.execute(select(batch_items.c.job_id).where(*pending).order_by("job_id").with_for_update())
            await transaction.execute(update(batch_items).where(*pending).values(state="dispatched"))

    async def requeue(self, batch_id: str) -> int:
        """Lines in flight become pending again: whoever dispatched them is gone, and perhaps the broker's copies too. A
        line that is dispatched twice counts once. Returns how many."""
        flying = (batch_items.c.batch_id == batch_id, batch_items.c.state == "dispatched")
        async with self._database.write() as transaction:
            await transaction.execute(select(batch_items.c.job_id).where(*flying).order_by("job_id").with_for_update())
            return (await transaction.execute(update(batch_items).where(*flying).values(state="pending"))).rowcount

    async def unfinished(
        self, batch_id: str, limit: int, *, states: Sequence[str] = ("pending", "dispatched")
    ) -> list[UnfinishedItem]:
        """The first `limit` lines without a result that are in one of `states`."""
        query = select(batch_items.c.job_id, batch_items.c.model).limit(limit)
        query = query.where(batch_items.c.batch_id == batch_id, batch_items.c.state.in_(states))
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query)).all()
        return [UnfinishedItem(row.job_id, row.model) for row in rows]

    async def ended(self, batch_id: str, *, completed: bool, after_line: int, limit: int) -> list[EndedItem]:
        """The first `limit` lines behind `after_line` with results: those that completed, or those that did not."""
        outcome = results.c.outcome == "completed" if completed else results.c.outcome != "completed"
        joined = batch_items.join(results, results.c.job_id == batch_items.c.job_id)
        joined = joined.join(usage, usage.c.job_id == batch_items.c.job_id)
        tokens = [usage.c[name] for name in JOB_TOKENS]
        query = select(batch_items.c.line, batch_items.c.custom_id, *results.c, *tokens).select_from(joined)
        query = query.where(batch_items.c.batch_id == batch_id, batch_items.c.line > after_line, outcome)
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query.order_by(batch_items.c.line).limit(limit))).mappings().all()
        return [EndedItem(row["line"], row["custom_id"], result_from_row(row)) for row in rows]


async def _hold_lease(transaction: Transaction, worker: str, batch_id: str) -> None:
    """Lock the batch's row for this transaction, so that the lease cannot pass on meanwhile. Raises LeaseLost."""
    held = select(batches.c.id).where(batches.c.id == batch_id, batches.c.lease_owner == worker).with_for_update()
    if (await transaction.execute(held)).one_or_none() is None:
        raise LeaseLost(batch_id)


def _row(batch_id: str, item: NewItem) -> dict[str, Any]:
    return {
        "batch_id": batch_id,
        "line": item.line,
        "custom_id": item.custom_id,
        "job_id": item.job_id,
        "model": item.model,
        "message": (item.message or b"").decode(),
        "rejected": None if item.rejected is None else msgspec.json.encode(item.rejected).decode(),
        "state": "pending",
    }


def _pending(row: RowMapping) -> PendingItem:
    rejected = None if row["rejected"] is None else msgspec.json.decode(row["rejected"], type=ErrorInfo)
    return PendingItem(row["line"], row["job_id"], row["model"], row["message"].encode(), rejected)
