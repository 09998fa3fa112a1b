from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.store import Store
from tests.store.databases import Clock, opened_store, url_of


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    async with opened_store(database_url, clock) as opened:
        yield opened
