"""A migrated, empty database, and the pieces that tests of the store and of the jobs share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.store import Store
from api.store.migrate import downgrade, upgrade
from schemas.messages import Choice, Outcome, Result, Usage


class Clock:
    """Unix seconds which pass only when told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """A database of this kind for one test."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/store.db"
    url = request.getfixturevalue("postgres_db_url")
    assert isinstance(url, str)
    return url


@asynccontextmanager
async def opened_store(url: str, clock: Callable[[], float]) -> AsyncIterator[Store]:
    """A store on a migrated database, dropped afterwards."""
    await upgrade(url)
    store = Store(url, clock=clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        await downgrade(url)


async def chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The parts as an upload brings them."""
    for part in parts:
        yield part


def result_of(job: str, outcome: Outcome = "completed", *, text: str = "", owner: str = "me", **fields: int) -> Result:
    """A worker's Result; `fields` are token counts."""
    choices = [Choice(index=0, text=text, token_ids=[1, 2], finish_reason="stop")] if text else []
    return Result(
        job=job,
        model="tiny",
        outcome=outcome,
        owner=owner,
        usage=Usage(**fields),
        choices=choices,
        created=1_800_000_000.0,
        finished=1_800_000_001.5,
        worker="w",
    )
