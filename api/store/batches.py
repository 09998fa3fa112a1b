"""Batches: what the owner sees, and the lease by which one dispatcher at a time works on a batch.

    validating ─► in_progress ─► finalizing ─► completed
        │              ├─► expired
        ├─► failed     │
        └──────────────┴─► cancelling ─► cancelled

Each step is one UPDATE that names the status it starts from and the lease it was taken under: a dispatcher that lost
its lease, or a cancellation that came first, changes nothing and the step returns False.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, RowMapping, Update, delete, insert, or_, select, update

from api.store.database import Database
from api.store.errors import NotCancellable, NotFound
from api.store.files import publish_files
from api.store.ids import new_id
from api.store.records import OPEN_STATUSES, BatchError, BatchRecord, EndStatus, Page
from api.store.tables import batch_items, batches, results
from schemas.messages import Usage

COMPLETION_WINDOW = "24h"
WINDOW_SECONDS = 86_400
_COUNTERS = ("total", "completed", "failed", "prompt_tokens", "completion_tokens", "cached_tokens")
_USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens")
_PRIVATE = (*_USAGE, "lease_owner", "lease_until")


class Batches:
    """Batches of one database. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        owner: str,
        *,
        input_file_id: str,
        endpoint: str,
        metadata: dict[str, str] | None = None,
        output_expires_after: int | None = None,
        completion_window: str = COMPLETION_WINDOW,
        window_seconds: int = WINDOW_SECONDS,
        batch_id: str | None = None,
    ) -> BatchRecord:
        """A new batch, validating; it expires after `window_seconds`. The input is looked at by the dispatcher. Its id
        is `batch_id` where that is given."""
        now = int(self._clock())
        row: dict[str, Any] = dict.fromkeys(_COUNTERS, 0)
        row |= {
            "id": batch_id or new_id("batch_"),
            "owner": owner,
            "endpoint": endpoint,
            "input_file_id": input_file_id,
        }
        row |= {"completion_window": completion_window, "status": "validating", "created_at": now}
        row |= {"expires_at": now + window_seconds, "output_expires_after": output_expires_after}
        row["metadata"] = None if metadata is None else json.dumps(metadata)
        async with self._database.write() as transaction:
            await transaction.execute(insert(batches).values(row))
        return await self.get(owner, row["id"])

    async def get(self, owner: str, batch_id: str) -> BatchRecord:
        """Raises NotFound."""
        async with self._database.read() as transaction:
            query = select(batches).where(batches.c.id == batch_id, batches.c.owner == owner)
            row = (await transaction.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound("batch", batch_id)
        return _record(row)

    async def list(self, owner: str, *, limit: int = 20, after: str | None = None) -> Page[BatchRecord]:
        """The owner's batches, newest first, from behind `after`."""
        query = select(batches).where(batches.c.owner == owner).order_by(batches.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(batches.c.id < after)
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query)).mappings().all()
        return Page([_record(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def cancel(self, owner: str, batch_id: str) -> BatchRecord:
        """Ask for cancellation; asking again changes nothing. Raises NotFound, NotCancellable."""
        cancellable = batches.c.status.in_(("validating", "in_progress"))
        mine = (batches.c.id == batch_id, batches.c.owner == owner)
        async with self._database.write() as transaction:
            values = {"status": "cancelling", "cancelling_at": int(self._clock())}
            await transaction.execute(update(batches).where(*mine, cancellable).values(values))
        record = await self.get(owner, batch_id)
        if record.status not in ("cancelling", "cancelled"):
            raise NotCancellable(batch_id, record.status)
        return record

    async def claim(self, worker: str, ttl: float, limit: int) -> Sequence[BatchRecord]:
        """Lease up to `limit` unfinished batches, oldest first, which nobody holds, to `worker` for `ttl` seconds."""
        query = select(batches.c.id).where(batches.c.status.in_(OPEN_STATUSES), self._free())
        async with self._database.read() as transaction:
            ids = (await transaction.execute(query.order_by(batches.c.id).limit(limit))).scalars().all()
        claimed = [await self._claim(worker, ttl, batch_id) for batch_id in ids]
        return [record for record in claimed if record is not None]

    async def renew(self, worker: str, ttl: float, batch_ids: Sequence[str]) -> set[str]:
        """Extend the leases that `worker` holds. Returns those of `batch_ids` which it still held."""
        held = (batches.c.id.in_(batch_ids), batches.c.lease_owner == worker)
        query = update(batches).where(*held).values(lease_until=self._clock() + ttl).returning(batches.c.id)
        async with self._database.write() as transaction:
            return set((await transaction.execute(query)).scalars().all())

    async def release(self, worker: str, batch_id: str) -> None:
        """Give up the lease, so that another need not wait for its end."""
        held = (batches.c.id == batch_id, batches.c.lease_owner == worker)
        async with self._database.write() as transaction:
            await transaction.execute(update(batches).where(*held).values(lease_owner=None, lease_until=None))

    async def begin(self, worker: str, batch_id: str, total: int) -> bool:
        """validating ─► in_progress, its `total` items being there."""
        return await self._step(worker, batch_id, "validating", "in_progress", total=total)

    async def finalize(self, worker: str, batch_id: str) -> bool:
        """in_progress ─► finalizing, every item having its result."""
        return await self._step(worker, batch_id, "in_progress", "finalizing")

    async def fail(self, worker: str, batch_id: str, errors: Sequence[BatchError]) -> bool:
        """validating ─► failed, for the reasons given; its items go."""
        values = {"status": "failed", "failed_at": int(self._clock()), "errors": msgspec.json.encode(errors).decode()}
        async with self._database.write() as transaction:
            if not (await transaction.execute(_held(worker, batch_id, "validating").values(values))).rowcount:
                return False
            await transaction.execute(delete(batch_items).where(batch_items.c.batch_id == batch_id))
        return True

    async def finish(self, worker: str, record: BatchRecord, status: EndStatus, files: dict[str, str | None]) -> bool:
        """Any open status ─► `status`. `files` maps output_file_id and error_file_id to written files, which become
        visible in the same transaction; the items and their stored outputs, now in those files, go with it."""
        values = {"status": status, f"{status}_at": int(self._clock()), **files}
        jobs = select(batch_items.c.job_id).where(batch_items.c.batch_id == record.id)
        async with self._database.write() as transaction:
            if not (await transaction.execute(_held(worker, record.id, record.status).values(values))).rowcount:
                return False
            await publish_files(transaction, [file_id for file_id in files.values() if file_id is not None])
            await transaction.execute(update(results).where(results.c.job_id.in_(jobs)).values(choices=None))
            await transaction.execute(delete(batch_items).where(batch_items.c.batch_id == record.id))
        return True

    async def _claim(self, worker: str, ttl: float, batch_id: str) -> BatchRecord | None:
        query = update(batches).where(batches.c.id == batch_id, batches.c.status.in_(OPEN_STATUSES), self._free())
        query = query.values(lease_owner=worker, lease_until=self._clock() + ttl)
        async with self._database.write() as transaction:
            row = (await transaction.execute(query.returning(*batches.c))).mappings().one_or_none()
        return None if row is None else _record(row)

    def _free(self) -> ColumnElement[bool]:
        return or_(batches.c.lease_until.is_(None), batches.c.lease_until < self._clock())

    async def _step(self, worker: str, batch_id: str, old: str, new: str, **values: Any) -> bool:
        values |= {"status": new, f"{new}_at": int(self._clock())}
        async with self._database.write() as transaction:
            return (await transaction.execute(_held(worker, batch_id, old).values(values))).rowcount > 0


def _held(worker: str, batch_id: str, status: str) -> Update:
    """An UPDATE of the batch, if `worker` still holds it and it still is `status`."""
    return update(batches).where(batches.c.id == batch_id, batches.c.lease_owner == worker, batches.c.status == status)


def _record(row: RowMapping) -> BatchRecord:
    columns: dict[str, Any] = {name: value for name, value in row.items() if name not in _PRIVATE}
    columns["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
    columns["errors"] = [] if row["errors"] is None else msgspec.json.decode(row["errors"], type=list[BatchError])
    return BatchRecord(**columns, usage=Usage(**{name: row[name] for name in _USAGE}))
