from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.store import Store
from broker.memory import MemoryBroker, MemoryHub
from schemas.topology import topology
from tests.jobs.stub import MODEL, StubWorker, connected
from tests.store.databases import Clock, opened_store, url_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    async with opened_store(database_url, clock) as opened:
        yield opened


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub()


@pytest.fixture
async def broker(hub: MemoryHub) -> AsyncIterator[MemoryBroker]:
    """The connection of whoever is under test."""
    made = await connected(hub)
    await made.declare(topology((MODEL,)))
    yield made
    await made.close()


@pytest.fixture
async def worker(hub: MemoryHub, broker: MemoryBroker) -> AsyncIterator[StubWorker]:
    connection = await connected(hub)
    started = StubWorker(connection)
    await started.start()
    yield started
    await connection.close()
