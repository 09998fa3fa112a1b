"""Migrations by function call: no ini file, the url given by the caller."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config

from api.store.database import async_url


def config(url: str) -> Config:
    """Alembic's settings for `url`; the environment script finds the url in `attributes`."""
    spec = find_spec("migrations")
    assert spec is not None
    assert spec.origin is not None
    made = Config()
    # A percent sign in a path or in a password is no interpolation.
    made.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    made.attributes["url"] = async_url(url)
    return made


async def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema up to `revision`. Alembic is synchronous and starts an event loop of its own, hence a thread."""
    await asyncio.to_thread(command.upgrade, config(url), revision)


async def downgrade(url: str, revision: str = "base") -> None:
    """Take the schema back to `revision`; "base" drops everything."""
    await asyncio.to_thread(command.downgrade, config(url), revision)
