"""The ledger: outcomes and usage, each job's exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import RowMapping, func, insert, select, update

from api.store.database import Database, Transaction
from api.store.errors import NotFound
from api.store.records import DayUsage, UsageTotal
from api.store.tables import batch_items, batches, results, usage
from schemas.messages import Choice, ErrorInfo, Result, Usage

DAY_SECONDS = 86_400


class Results:
    """Terminal Results of all jobs, from batches and published directly."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def record(self, result: Result) -> bool:
        """Write one Result; False for a duplicate, which changes nothing."""
        return (await self.record_many([result]))[0]

    async def record_many(self, batch: Sequence[Result]) -> list[bool]:
        """Write Results in one transaction: outcome, usage, batch line and batch counters. True for each that was new.

        At most a few hundred: each is a row of one statement. Raises StoreRejected, StoreUnavailable; nothing is
        written then. Rows are taken in the order of their ids, so that two recorders cannot wait for each other.
        """
        first: dict[str, Result] = {}
        for result in batch:
            first.setdefault(result.job, result)
        ordered = [first[job] for job in sorted(first)]
        async with self._database.write() as transaction:
            new = await self._insert(transaction, ordered)
            if new:
                await self._insert_usage(transaction, [first[job] for job in sorted(new)])
            await _finish_items(transaction, first)
        return [_take(new, result.job) for result in batch]

    async def get(self, owner: str, job_id: str) -> Result:
        """The Result of one job. Raises NotFound: unknown, or not ended yet."""
        async with self._database.read() as transaction:
            result = (await results_of(transaction, [job_id])).get(job_id)
        if result is None or result.owner != owner:
            raise NotFound("result", job_id)
        return result

    async def usage(
        self, owner: str | None = None, *, since: float = 0, until: float | None = None
    ) -> list[UsageTotal]:
        """Sums a model over jobs finished in [since, until), of one owner or of all, by the model's name."""
        sums = [func.sum(usage.c[name]).label(name) for name in _TOKENS]
        query = select(usage.c.model, func.count().label("jobs"), *sums).where(usage.c.finished_at >= since)
        if until is not None:
            query = query.where(usage.c.finished_at < until)
        if owner is not None:
            query = query.where(usage.c.owner == owner)
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query.group_by(usage.c.model).order_by(usage.c.model))).mappings()
        return [UsageTotal(row["model"], row["jobs"], *[int(row[name]) for name in _TOKENS]) for row in rows]

    async def daily_usage(self, owner: str, *, since: int, until: int) -> list[DayUsage]:
        """Sums a day and model over the owner's jobs finished in [since, until), oldest day first."""
        day = (usage.c.finished_at - usage.c.finished_at % DAY_SECONDS).label("day")
        sums = [func.sum(usage.c[name]).label(name) for name in _TOKENS]
        query = select(day, usage.c.model, func.count().label("jobs"), *sums)
        query = query.where(usage.c.owner == owner, usage.c.finished_at >= since, usage.c.finished_at < until)
        async with self._database.read() as transaction:
            rows = await transaction.execute(query.group_by(day, usage.c.model).order_by(day, usage.c.model))
            return [
                DayUsage(row.day, row.model, row.jobs, *[int(getattr(row, name)) for name in _TOKENS]) for row in rows
            ]

    async def _insert(self, transaction: Transaction, batch: list[Result]) -> set[str]:
        """The job ids that were not there before."""
        query = self._database.insert(results).on_conflict_do_nothing(index_elements=["job_id"])
        rows = [_result_row(result) for result in batch]
        return set((await transaction.execute(query.returning(results.c.job_id), rows)).scalars().all())

    async def _insert_usage(self, transaction: Transaction, batch: list[Result]) -> None:
        now = self._clock()
        await transaction.execute(insert(usage), [_usage_row(result, now) for result in batch])


_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")
JOB_TOKENS = (*_TOKENS, "reasoning_tokens")
"""The token counts of one job; those of reasoning are among its completion tokens."""


async def results_of(transaction: Transaction, jobs: Sequence[str]) -> dict[str, Result]:
    """The Results of those of `jobs` that have ended, by job."""
    query = select(*results.c, *[usage.c[name] for name in JOB_TOKENS]).join(usage, usage.c.job_id == results.c.job_id)
    rows = (await transaction.execute(query.where(results.c.job_id.in_(jobs)))).mappings()
    return {row["job_id"]: result_from_row(row) for row in rows}


def _take(new: set[str], job: str) -> bool:
    """Whether `job` is among the new ones: true once, for a duplicate may stand in the same batch."""
    if job not in new:
        return False
    new.remove(job)
    return True


async def _finish_items(transaction: Transaction, ended: dict[str, Result]) -> None:
    """Batch lines of these jobs which were not done yet: done, and counted in their batches."""
    mine = batch_items.c.job_id.in_(ended)
    await transaction.execute(select(batch_items.c.job_id).where(mine).order_by("job_id").with_for_update())
    query = update(batch_items).where(mine, batch_items.c.state != "done").values(state="done")
    lines: dict[str, list[Result]] = defaultdict(list)
    for row in await transaction.execute(query.returning(batch_items.c.batch_id, batch_items.c.job_id)):
        lines[row.batch_id].append(ended[row.job_id])
    for batch_id in sorted(lines):
        await _count(transaction, batch_id, lines[batch_id])


async def _count(transaction: Transaction, batch_id: str, ended: list[Result]) -> None:
    completed = sum(result.outcome == "completed" for result in ended)
    added = {"completed": completed, "failed": len(ended) - completed}
    added |= {name: sum(getattr(result.usage, name) for result in ended) for name in _TOKENS}
    values = {name: batches.c[name] + count for name, count in added.items()}
    await transaction.execute(update(batches).where(batches.c.id == batch_id).values(values))


def _result_row(result: Result) -> dict[str, Any]:
    return {
        "job_id": result.job,
        "owner": result.owner,
        "model": result.model,
        "job_class": result.job_class,
        "outcome": result.outcome,
        "error": None if result.error is None else msgspec.json.encode(result.error).decode(),
        "choices": msgspec.json.encode(result.choices).decode() if result.choices else None,
        "created": result.created,
        "started": result.started,
        "finished": result.finished,
        "epoch": result.epoch,
        "worker": result.worker,
    }


def _usage_row(result: Result, now: float) -> dict[str, Any]:
    tokens = {name: getattr(result.usage, name) for name in JOB_TOKENS}
    finished = int(result.finished or now)
    return {"job_id": result.job, "owner": result.owner, "model": result.model, "finished_at": finished, **tokens}


def result_from_row(row: RowMapping) -> Result:
    """The Result from a row of all columns of `results` and the token counts of `usage`."""
    return Result(
        job=row["job_id"],
        model=row["model"],
        outcome=row["outcome"],
        job_class=row["job_class"],
        owner=row["owner"],
        epoch=row["epoch"],
        usage=Usage(**{name: row[name] for name in JOB_TOKENS}),
        choices=[] if row["choices"] is None else msgspec.json.decode(row["choices"], type=list[Choice]),
        error=None if row["error"] is None else msgspec.json.decode(row["error"], type=ErrorInfo),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        worker=row["worker"],
    )
