"""A database whose disk is full, until there is room again: SQLite may have no more pages, Postgres says what it says when
a file cannot grow (SQLSTATE 53100). Neither needs a disk of its own, nor a privileged user."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from api.store.database import async_url
from api.store.tables import metadata

MOST_PAGES = 1 << 30

FILL = """
create function no_room() returns trigger language plpgsql as
$$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$
"""


@asynccontextmanager
async def full(url: str) -> AsyncIterator[None]:
    """No room while the block lasts."""
    if url.startswith("sqlite"):
        with _no_more_pages():
            yield
        return
    await _run(
        url,
        FILL,
        *(f"create trigger no_room before insert or update on {t} execute function no_room()" for t in _tables()),
    )
    try:
        yield
    finally:
        await _run(url, "drop function no_room() cascade")


@contextmanager
def _no_more_pages() -> Iterator[None]:
    """A limit is a connection's own, and is set anew with each transaction; one below what there is means what there is."""
    limit = 1

    def set_limit(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")

    event.listen(Engine, "begin", set_limit)
    yield
    limit = MOST_PAGES  # listening on: connections of the pool still have the other


def _tables() -> list[str]:
    return [table.name for table in metadata.sorted_tables]


async def _run(url: str, *statements: str) -> None:
    engine = create_async_engine(async_url(url))
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()
