"""Opens what a command works with: a broker's connection, the store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from api.batch_lines import body_from_line, job_from_line
from api.jobs.dispatcher import Dispatcher
from api.store import Store, StoreError
from api.store.migrate import upgrade
from broker.base import Broker, BrokerError
from cli.errors import StartError
from cli.settings import BrokerSettings, StoreSettings
from schemas.topology import topology

CONNECT_TIMEOUT = 15.0
MIGRATE_TIMEOUT = 600.0


@asynccontextmanager
async def connected(broker: Broker, models: tuple[str, ...] = ()) -> AsyncIterator[Broker]:
    """The broker, connected, its topology declared, with the request queues of `models`. Raises StartError."""
    try:
        await asyncio.wait_for(broker.connect(), CONNECT_TIMEOUT)
        await asyncio.wait_for(broker.declare(topology(models)), CONNECT_TIMEOUT)
    except (BrokerError, TimeoutError) as error:
        await broker.close()
        reason = str(error) or f"no answer within {CONNECT_TIMEOUT:g} s"
        raise StartError(f"cannot use the broker: {reason}; check --amqp-url, and that RabbitMQ runs there") from error
    try:
        yield broker
    finally:
        await broker.close()


def amqp_broker(settings: BrokerSettings, name: str) -> Broker:
    """A RabbitMQ client. Raises StartError without a usable address."""
    from broker.amqp import AmqpBroker

    if not settings.amqp_url:
        raise StartError("no broker: give --amqp-url or set AMQP_URL; `headrace serve` alone brings its own")
    if urlsplit(settings.amqp_url).scheme not in ("amqp", "amqps"):
        raise StartError("--amqp-url does not begin with amqp:// or amqps://")
    try:
        return AmqpBroker(settings.amqp_url, name=name)
    except ValueError as error:  # the address may hold a password, so it is not shown
        raise StartError(f"--amqp-url cannot be read: {error}") from error


@asynccontextmanager
async def opened_store(settings: StoreSettings, *, migrate: bool = False) -> AsyncIterator[Store]:
    """The store; with `migrate` its schema is brought up to date first. Raises StartError."""
    store = await _open(settings, migrate)
    try:
        yield store
    finally:
        await store.close()


async def _open(settings: StoreSettings, migrate: bool) -> Store:
    store = None
    try:
        check_sqlite_file(settings, exists=not migrate)
        store = Store(settings.store_url)
        if migrate:
            await asyncio.wait_for(upgrade(settings.store_url), MIGRATE_TIMEOUT)
        await store.open()
        await store.batches.list("", limit=1)  # a table: is the schema there?
    except (StoreError, SQLAlchemyError, OSError, ValueError, TimeoutError) as error:
        if store is not None:
            await store.close()
        reason = f"cannot use the database: {_first_line(error)}"
        raise StartError(f"{reason}; check --database-url, that it runs, and that `headrace migrate` has") from error
    return store


def check_sqlite_file(settings: StoreSettings, *, exists: bool) -> None:
    """Where the store is an SQLite file: make the data directory, and raise OSError where the file cannot be made, or
    where it `exists` not. SQLite itself would make an empty one, or say no more than that it cannot."""
    url = make_url(settings.store_url)
    if not url.drivername.startswith("sqlite") or not url.database:
        return
    path = Path(url.database)
    if not settings.database_url:
        path.parent.mkdir(parents=True, exist_ok=True)
    if exists and not path.is_file():
        raise OSError(f"there is no file {path}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"{path} cannot be written")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def make_dispatcher(broker: Broker, store: Store) -> Dispatcher:
    return Dispatcher(broker, store, parse=job_from_line, render=body_from_line)
