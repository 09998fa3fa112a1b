"""Transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

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
        async with database.write() as transaction:
            await transaction.execute(count)
            await asyncio.sleep(0.005)
            await transaction.execute(insert(files).values(id=f"file-{number}", **ROW))

    await asyncio.gather(*(write(number) for number in range(8)))
    async with database.read() as transaction:
        assert (await transaction.execute(count)).scalar_one() == 8


async def test_a_reader_goes_on_beside_a_writer(database: Database) -> None:
    async with database.write() as writer:
        await writer.execute(insert(files).values(id="file-1", **ROW))
        async with asyncio.timeout(2), database.read() as reader:
            assert (await reader.execute(select(func.count()).select_from(files))).scalar_one() == 0


async def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(StoreRejected):
        async with database.write() as transaction:
            await transaction.execute(insert(file_chunks).values(file_id="none", seq=0, data=b""))


async def test_a_writer_cancelled_at_work_leaves_no_lock(database: Database) -> None:
    begun = asyncio.Event()

    async def write(*names: str) -> None:
        async with database.write() as transaction:
            begun.set()
            await transaction.execute(insert(files), [{"id": name, **ROW} for name in names])

    writing = asyncio.create_task(write(*(f"file-{number}" for number in range(20_000))))
    await begun.wait()
    await asyncio.sleep(0.02)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with asyncio.timeout(5):
        await write("file-1")


async def test_a_commit_that_has_begun_is_finished(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    commit = AsyncConnection.commit

    async def slow(connection: AsyncConnection) -> None:
        begun.set()
        await go_on.wait()
        await commit(connection)

    async def write() -> None:
        async with database.write() as transaction:
            await transaction.execute(insert(files).values(id="file-1", **ROW))

    monkeypatch.setattr(AsyncConnection, "commit", slow)
    writing = asyncio.create_task(write())
    await begun.wait()
    writing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with database.read() as transaction:
        assert (await transaction.execute(select(files.c.id))).scalars().all() == ["file-1"]
