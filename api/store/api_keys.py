"""API keys: who may use the service. Only a hash of the secret is kept; it is shown once, when the key is made."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import RowMapping, insert, select, update

from api.store.database import Database
from api.store.errors import NotFound
from api.store.ids import new_id
from api.store.records import ApiKey
from api.store.tables import api_keys

SECRET_PREFIX = "sk-hr-"
SECRET_BYTES = 32
HINT_LENGTH = 4


def secret_hash(secret: str) -> str:
    """SHA-256 in hexadecimal. The secret is 256 random bits, so there is nothing that a slow hash would protect."""
    return hashlib.sha256(secret.encode()).hexdigest()


class ApiKeys:
    """The keys of one database. A key's id is the owner of all that is made with it. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def create(self, name: str) -> tuple[ApiKey, str]:
        """A new key, and its secret, which cannot be had again."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        made = ApiKey(new_id("key_"), name, secret_hash(secret), secret[-HINT_LENGTH:], int(self._clock()), None)
        async with self._database.write() as transaction:
            await transaction.execute(insert(api_keys).values(asdict(made)))
        return made, secret

    async def list(self) -> list[ApiKey]:
        """All keys, the revoked ones too, oldest first."""
        async with self._database.read() as transaction:
            rows = (await transaction.execute(select(api_keys).order_by(api_keys.c.id))).mappings()
            return [_record(row) for row in rows]

    async def revoke(self, key_id: str) -> ApiKey:
        """From now on the key is refused; asking again changes nothing. Raises NotFound."""
        mine = api_keys.c.id == key_id
        async with self._database.write() as transaction:
            values = {"revoked_at": int(self._clock())}
            await transaction.execute(update(api_keys).where(mine, api_keys.c.revoked_at.is_(None)).values(values))
            row = (await transaction.execute(select(api_keys).where(mine))).mappings().one_or_none()
        if row is None:
            raise NotFound("key", key_id)
        return _record(row)


def _record(row: RowMapping) -> ApiKey:
    return ApiKey(**row)
