"""Responses: what was asked. How each ended is in the ledger, under its job's id.

A row says what the client wanted, and is written before the job is published; the Result is written once, by the recorder
or by the api process that has just read it, whoever comes first. Nobody writes "the final response": it is put together
of the two whenever it is read, so it is right whichever process dies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import RowMapping, and_, delete, exists, or_, select, update

from api.store.database import Database, Transaction
from api.store.errors import NotFound
from api.store.records import ResponseRecord
from api.store.results import results_of
from api.store.tables import responses, results
from schemas.messages import Result

KEPT = 30 * 86_400.0
"""Seconds for which a response is kept."""
LATE = 86_400.0
"""Seconds after its deadline within which a job's Result is still waited for, to take its output away."""
SLICE = 500

Stored = tuple[ResponseRecord, Result | None]


class Responses:
    """Responses of one database, scoped by owner. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def create(self, record: ResponseRecord) -> None:
        """Keep a new response; one that is there already stays as it is."""
        row = {
            "id": record.id,
            "owner": record.owner,
            "job_id": record.job_id,
            "previous_id": record.previous_id,
            "request": json.dumps(record.request),
            "input": json.dumps(record.input),
            "created_at": record.created_at,
            "deadline": record.deadline,
            "cancelled_at": None,
            "expires_at": record.created_at + KEPT,
        }
        async with self._database.write() as transaction:
            query = self._database.insert(responses).values(row)
            await transaction.execute(query.on_conflict_do_nothing(index_elements=["id"]))

    async def get(self, owner: str, response_id: str) -> Stored:
        """A response and its Result, None before it has ended. Raises NotFound."""
        async with self._database.read() as transaction:
            row = (await transaction.execute(self._mine(owner, response_id))).mappings().one_or_none()
            if row is None:
                raise NotFound("response", response_id)
            record = _record(row)
            return record, (await results_of(transaction, [record.job_id])).get(record.job_id)

    async def chain(self, owner: str, response_id: str) -> list[Stored]:
        """The response and all those before it, the first one first. Raises NotFound where one of them is gone."""
        turn = self._mine(owner, response_id).cte("turn", recursive=True)
        before = select(responses).where(responses.c.id == turn.c.previous_id, *self._visible(owner))
        query = select(turn.union(before))
        async with self._database.read() as transaction:
            rows = {row["id"]: _record(row) for row in (await transaction.execute(query)).mappings()}
            ended = await results_of(transaction, [record.job_id for record in rows.values()])
        found: list[Stored] = []
        wanted: str | None = response_id
        while wanted is not None:
            if wanted not in rows:
                raise NotFound("response", wanted)
            record = rows[wanted]
            found.append((record, ended.get(record.job_id)))
            wanted = record.previous_id
        return found[::-1]

    async def cancel(self, owner: str, response_id: str) -> Stored:
        """Call it cancelled, unless it has ended; from then on it is, whatever its job still comes to. Raises NotFound."""
        unended = ~exists().where(results.c.job_id == responses.c.job_id)
        query = update(responses).where(responses.c.id == response_id, *self._visible(owner), unended)
        query = query.where(responses.c.cancelled_at.is_(None)).values(cancelled_at=self._clock())
        async with self._database.write() as transaction:
            await transaction.execute(query)
        return await self.get(owner, response_id)

    async def delete(self, owner: str, response_id: str) -> ResponseRecord:
        """Make it unseen, and take its output away; what its job may still bring goes with the next purge. Raises
        NotFound."""
        query = update(responses).where(responses.c.id == response_id, *self._visible(owner)).values(expires_at=0.0)
        async with self._database.write() as transaction:
            row = (await transaction.execute(query.returning(*responses.c))).mappings().one_or_none()
            if row is None:
                raise NotFound("response", response_id)
            await _take_outputs(transaction, [row["job_id"]])
        return _record(row)

    async def purge(self) -> None:
        """Drop what is deleted or too old, with its output. A job that may still end is waited for."""
        now = self._clock()
        ended = exists().where(results.c.job_id == responses.c.job_id)
        gone = and_(responses.c.expires_at <= now, or_(ended, responses.c.deadline < now - LATE))
        query = select(responses.c.id, responses.c.job_id).where(gone).order_by(responses.c.expires_at).limit(SLICE)
        async with self._database.write() as transaction:
            rows = (await transaction.execute(query)).all()
            if rows:
                await _take_outputs(transaction, [row.job_id for row in rows])
                await transaction.execute(delete(responses).where(responses.c.id.in_([row.id for row in rows])))

    def _mine(self, owner: str, response_id: str) -> Any:
        return select(responses).where(responses.c.id == response_id, *self._visible(owner))

    def _visible(self, owner: str) -> tuple[Any, ...]:
        return responses.c.owner == owner, responses.c.expires_at > self._clock()


async def _take_outputs(transaction: Transaction, jobs: list[str]) -> None:
    await transaction.execute(update(results).where(results.c.job_id.in_(jobs)).values(choices=None))


def _record(row: RowMapping) -> ResponseRecord:
    return ResponseRecord(
        id=row["id"],
        owner=row["owner"],
        job_id=row["job_id"],
        previous_id=row["previous_id"],
        request=json.loads(row["request"]),
        input=json.loads(row["input"]),
        created_at=row["created_at"],
        deadline=row["deadline"],
        cancelled_at=row["cancelled_at"],
    )
