"""Idempotency keys: which request each came with, and what was made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import RowMapping, and_, case, delete, select, tuple_, update

from api.store.database import Database
from api.store.records import KeyRecord
from api.store.tables import idempotency_keys as keys
from api.store.tables import results

LEASE = 60.0
"""Seconds for what was claimed to be accepted: after them the claim is anyone's, as its holder has died."""
KEPT = 86_400.0
"""Seconds for which an accepted request is remembered."""
SLICE = 500


class IdempotencyKeys:
    """Keys of one database, scoped by owner. `clock` gives Unix seconds.

    A key is claimed, then accepted. A claim that lapses and is claimed again by the same request keeps its object id:
    should the first have got through after all, doing it again under the same id changes nothing.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def get(self, owner: str, key: str) -> KeyRecord | None:
        """The request that holds the key, if any does."""
        async with self._database.read() as transaction:
            query = select(keys).where(_is(owner, key), keys.c.expires_at > self._clock())
            row = (await transaction.execute(query)).mappings().one_or_none()
        return None if row is None else _record(row)

    async def claim(
        self, owner: str, key: str, fingerprint: str, object_id: str, *, jobs: int = 1
    ) -> tuple[KeyRecord, bool]:
        """The request that holds the key, and whether it is the caller's: then the caller is to make what it asks for,
        under the record's object id. `jobs` is how many jobs that is."""
        now = self._clock()
        row = {"owner": owner, "key": key, "fingerprint": fingerprint, "object_id": object_id, "jobs": jobs}
        row |= {"created_at": now, "accepted_at": None, "expires_at": now + LEASE}
        lapsed = and_(keys.c.fingerprint == fingerprint, keys.c.accepted_at.is_(None))
        changes: dict[str, Any] = row | {"object_id": case((lapsed, keys.c.object_id), else_=object_id)}
        del changes["owner"], changes["key"]
        query = self._database.insert(keys).values(row)
        query = query.on_conflict_do_update(
            index_elements=["owner", "key"], set_=changes, where=keys.c.expires_at <= now
        ).returning(*keys.c)
        async with self._database.write() as transaction:
            claimed = (await transaction.execute(query)).mappings().one_or_none()
            if claimed is not None:
                return _record(claimed), True
            holder = (await transaction.execute(select(keys).where(_is(owner, key)))).mappings().one()
            return _record(holder), False

    async def accept(self, record: KeyRecord) -> None:
        """What was claimed is made: remember it."""
        now = self._clock()
        async with self._database.write() as transaction:
            values = {"accepted_at": now, "expires_at": now + KEPT}
            await transaction.execute(update(keys).where(_same(record)).values(values))

    async def release(self, record: KeyRecord) -> None:
        """It was refused, or has come to nothing: the key is free."""
        async with self._database.write() as transaction:
            await transaction.execute(delete(keys).where(_same(record)))

    async def purge(self) -> None:
        """Forget what has expired, with the outputs that were kept for it."""
        query = select(keys).where(keys.c.expires_at <= self._clock()).order_by(keys.c.expires_at).limit(SLICE)
        async with self._database.write() as transaction:
            expired = [_record(row) for row in (await transaction.execute(query)).mappings()]
            if not expired:
                return
            jobs = [job for record in expired for job in record.job_ids]
            await transaction.execute(update(results).where(results.c.job_id.in_(jobs)).values(choices=None))
            names = [(record.owner, record.key) for record in expired]
            await transaction.execute(delete(keys).where(tuple_(keys.c.owner, keys.c.key).in_(names)))


def _is(owner: str, key: str) -> Any:
    return and_(keys.c.owner == owner, keys.c.key == key)


def _same(record: KeyRecord) -> Any:
    return and_(_is(record.owner, record.key), keys.c.object_id == record.object_id)


def _record(row: RowMapping) -> KeyRecord:
    return KeyRecord(
        owner=row["owner"],
        key=row["key"],
        fingerprint=row["fingerprint"],
        object_id=row["object_id"],
        jobs=row["jobs"],
        created_at=row["created_at"],
        is_accepted=row["accepted_at"] is not None,
    )
