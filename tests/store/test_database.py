"""Transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select

from api.store.database import Database
from api.store.errors import StoreRejected
from api.store.migrate import downgrade, upgrade
from api.store.tables import file_chunks, files

ROW = {"owner": "me", "bytes": 0, "created_at": 0, "filename": "f", "purpose": "batch", "status": "processed"}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade(database_url)
    opened = Database(database_url)
    await opened.open()
    yield opened
    await opened.close()
    await downgrade(database_url)


async def test_writers_that_read_first_wait_for_each_other(database: Database) -> None:
    count = select(func.count()).select_from(files)

    async def write(number: int) -> None:
        async with database.write() as connection:
            await connection.execute(count)
            await asyncio.sleep(0.005)
            await connection.execute(insert(files).values(id=f"file-{number}", **ROW))

    await asyncio.gather(*(write(number) for number in range(8)))
    async with database.read() as connection:
        assert (await connection.execute(count)).scalar_one() == 8


async def test_a_reader_goes_on_beside_a_writer(database: Database) -> None:
    async with database.write() as writer:
        await writer.execute(insert(files).values(id="file-1", **ROW))
        async with asyncio.timeout(2), database.read() as reader:
            assert (await reader.execute(select(func.count()).select_from(files))).scalar_one() == 0


async def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(StoreRejected):
        async with database.write() as connection:
            await connection.execute(insert(file_chunks).values(file_id="none", seq=0, data=b""))
