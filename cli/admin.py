"""`headrace migrate` and `headrace topology`."""

from __future__ import annotations

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from api.store.migrate import downgrade, upgrade
from cli.errors import StartError
from cli.parts import amqp_broker, connected
from cli.settings import MigrateSettings, TopologySettings
from schemas.topology import topology


def migrate(settings: MigrateSettings) -> None:
    """Move the schema to the revision. Raises StartError."""
    if not settings.database_url:
        settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    move = downgrade if settings.down else upgrade
    try:
        asyncio.run(move(settings.store_url, settings.revision))
    except (SQLAlchemyError, OSError) as error:
        raise StartError(f"cannot migrate the store: {error}; check --database-url") from error
    print(f"schema is at {settings.revision}")


def declare_topology(settings: TopologySettings) -> None:
    """Declare everything on RabbitMQ. Raises StartError."""
    asyncio.run(_declare(settings))


async def _declare(settings: TopologySettings) -> None:
    wanted = topology(tuple(settings.models))
    async with connected(amqp_broker(settings, "headrace-topology")) as broker:
        await broker.declare(wanted)
    for queue in wanted.queues:
        print(f"declared {queue.name}")
