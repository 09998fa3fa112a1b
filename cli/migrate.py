"""`headrace migrate`."""

from __future__ import annotations

import asyncio

from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from api.store.migrate import downgrade, upgrade
from cli.errors import StartError
from cli.services import MIGRATE_TIMEOUT, check_sqlite_file
from cli.settings import MigrateSettings


def run(settings: MigrateSettings) -> None:
    """Move the schema to the revision. Raises StartError."""
    try:
        check_sqlite_file(settings, exists=False)
        asyncio.run(_move(settings))
    except (SQLAlchemyError, CommandError, OSError, ValueError, TimeoutError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StartError(f"cannot migrate: {reason}; check --database-url, and that the database runs") from error
    print(f"the schema is at {settings.target}")


async def _move(settings: MigrateSettings) -> None:
    move = downgrade if settings.down else upgrade
    await asyncio.wait_for(move(settings.store_url, settings.target), MIGRATE_TIMEOUT)
