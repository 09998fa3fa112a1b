"""The engine and its transactions: what differs between Postgres and SQLite is here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, Table, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from api.store.errors import StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0
COMMAND_TIMEOUT = 30.0
SQLITE_BUSY_TIMEOUT = 15.0
"""Seconds that a writer waits for another's transaction."""

_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
_REFUSED_CLASSES = ("22", "23")
"""SQLSTATE classes of refused values: data exception, integrity constraint violation."""


def async_url(url: str) -> URL:
    """`url` with the asyncio driver of its database. Raises ValueError for any other database, and for SQLite in
    memory, which each pooled connection would have of its own."""
    parsed = make_url(url)
    driver = _DRIVERS.get(parsed.drivername, parsed.drivername)
    if driver not in _DRIVERS.values():
        raise ValueError(f"{parsed.drivername}: the database is postgresql://... or sqlite:///path")
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLite needs a file: sqlite:///path")
    return parsed.set(drivername=driver)


class Transaction:
    """The statements of one transaction. None of them is interrupted half-way."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """Run one statement; with `rows`, once for each."""
        return await settled(self._connection.execute(statement, rows))


class Database:
    """A pool of connections with read and write transactions."""

    def __init__(self, url: str) -> None:
        self._url = async_url(url)
        self.is_sqlite = self._url.drivername.startswith("sqlite")
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        """Make the pool and try one connection. Raises StoreUnavailable."""
        self._engine = _sqlite_engine(self._url) if self.is_sqlite else _postgres_engine(self._url)
        await self.ping()

    async def close(self) -> None:
        """Close every connection."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def ping(self) -> None:
        """One round trip. Raises StoreUnavailable."""
        async with self.read() as transaction:
            await transaction.execute(text("select 1"))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """A transaction that only reads."""
        async with _transaction(self._opened()) as transaction:
            yield transaction

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """A transaction that writes, committed on leaving. SQLite's takes the write lock at once: a transaction that
        reads first and writes later would fail there, at once, whenever another had written in between."""
        async with _transaction(self._opened().execution_options(immediate=True)) as transaction:
            yield transaction

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ON CONFLICT. (Its class is the dialect's own, hence Any.)"""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise StoreUnavailable("the store is not open")
        return self._engine


async def settled(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which runs to its end even if the caller is cancelled: the cancellation is raised then.

    A statement abandoned half-way leaves a connection that nobody can use, and under SQLite its write lock with it, until
    every other writer has timed out.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a database call failed while its caller was cancelled: %s", error)
        raise


@asynccontextmanager
async def _transaction(engine: AsyncEngine) -> AsyncIterator[Transaction]:
    connection = engine.connect()
    with _translated():
        try:
            await settled(_begin(connection))
            yield Transaction(connection)
            await settled(connection.commit())
        finally:
            # Closing rolls back what is not committed. Without a connection there is nothing to close.
            if connection.sync_connection is not None:
                await settled(connection.close())


async def _begin(connection: AsyncConnection) -> None:
    await connection.start()
    await connection.begin()


def _postgres_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_timeout=CONNECT_TIMEOUT,
        connect_args={"timeout": CONNECT_TIMEOUT, "command_timeout": COMMAND_TIMEOUT},
    )


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_timeout=SQLITE_BUSY_TIMEOUT,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT},
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """WAL lets readers go on beside the one writer; FULL syncs each commit, for what is acknowledged must stay. The
    driver's own implicit BEGIN is switched off in favour of ours."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """Database errors as StoreRejected, where the values are at fault, or StoreUnavailable."""
    try:
        yield
    except (DataError, IntegrityError, OverflowError) as error:
        raise StoreRejected(str(error)) from error
    except DBAPIError as error:
        refused = str(getattr(error.orig, "sqlstate", None))[:2] in _REFUSED_CLASSES
        raise (StoreRejected if refused else StoreUnavailable)(str(error)) from error
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
