"""What `headrace bench chaos` prints: the ledger beside what the clients saw."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from bench.chaos_load import Load, Record

LEDGER_SECONDS = 60.0
"""For the last results to reach the ledger once every client has its answer."""
QUERY = "select job_id, outcome, epoch, completion_tokens from results left join usage using (job_id)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A job in the ledger."""

    outcome: str
    epoch: int
    tokens: int


async def read_ledger(url: str, load: Load) -> dict[str, Entry]:
    """All entries, once every accepted job has one, or LEDGER_SECONDS later."""
    wanted = {record.job for record in load.records if record.accepted and "/" not in record.job}
    limit = time.monotonic() + LEDGER_SECONDS
    while True:
        try:
            entries = await _entries(url)
        except (OSError, SQLAlchemyError):
            entries = {}
        if wanted <= entries.keys() or time.monotonic() > limit:
            return entries
        await asyncio.sleep(0.5)


async def _entries(url: str) -> dict[str, Entry]:
    engine = create_async_engine(url)
    try:
        async with asyncio.timeout(LEDGER_SECONDS), engine.connect() as connection:
            rows = (await connection.execute(text(QUERY))).all()
        return {row.job_id: Entry(row.outcome, row.epoch, row.completion_tokens or 0) for row in rows}
    finally:
        await engine.dispose()


def make_report(load: Load, ledger: dict[str, Entry], kills: dict[str, list[float]]) -> dict[str, Any]:
    """The figures; `lost` are jobs that were accepted and have no answer, no error, or no place in the ledger."""
    accepted = [record for record in load.records if record.accepted]
    answered = [record for record in accepted if record.answered]
    interrupted = [record for record in accepted if _was_interrupted(record, ledger, kills)]
    by_kill = [r for r in interrupted if any(map(r.was_under_way, kills.get("worker SIGKILL", [])))]
    return {
        "accepted": len(accepted),
        "completed": len(answered),
        "failed": sum(bool(record.error) for record in accepted if not record.answered),
        "lost": sum(_is_lost(record, ledger) for record in accepted),
        "duplicated": sum(_is_double(record, ledger) for record in answered),
        "usage_rows": len(ledger),
        "output_tokens": sum(record.tokens for record in answered),
        "usage_tokens": sum(ledger[record.job].tokens for record in answered if record.job in ledger),
        "streams_interrupted": len(interrupted),
        "streams_whole": sum(record.answered and load.is_right(record) for record in interrupted),
        "gap_p99_s": round(percentile([record.gap() for record in by_kill], 0.99), 2),
        "kills": {name: len(times) for name, times in kills.items()},
        "wrong_answers": sum(not load.is_right(record) for record in answered),
        "streams_cut_by_api": sum(record.cut for record in accepted),
        "orphan_rows": len(ledger.keys() - {record.job for record in accepted}),
        "never_accepted": len(load.records) - len(accepted),
        "refusals": load.refused,
        "errors": sorted({record.error for record in load.records if record.error})[:5],
    }


def _was_interrupted(record: Record, ledger: dict[str, Entry], kills: dict[str, list[float]]) -> bool:
    """A stream that had begun and not ended when its worker, as the ledger's epoch tells, or the broker went. What a
    killed api process cut is not among them."""
    moments = [moment for name, times in kills.items() if name.split()[0] in ("worker", "broker") for moment in times]
    entry = ledger.get(record.job)
    return entry is not None and entry.epoch > 0 and not record.cut and any(map(record.was_under_way, moments))


def _is_lost(record: Record, ledger: dict[str, Entry]) -> bool:
    told = record.answered or record.cut or bool(record.error)
    return not told or record.job not in ledger


def _is_double(record: Record, ledger: dict[str, Entry]) -> bool:
    """Counted otherwise than its client was told, or put out twice."""
    entry = ledger.get(record.job)
    return (entry is not None and entry.tokens != record.tokens) or record.error.startswith("twice")


def percentile(values: list[float], part: float) -> float:
    """Of no values, 0."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def is_sound(report: dict[str, Any]) -> bool:
    """Whether every promise held."""
    zero = ("lost", "duplicated", "failed", "wrong_answers", "never_accepted")
    whole = report["streams_whole"] == report["streams_interrupted"]
    return whole and not any(report[name] for name in zero) and report["output_tokens"] == report["usage_tokens"]
