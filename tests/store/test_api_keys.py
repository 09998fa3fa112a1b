"""API keys: shown once, kept as a hash, revoked for good."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from api.store import NotFound, Store
from api.store.api_keys import secret_hash
from api.store.tables import api_keys
from tests.store.databases import Clock


async def test_only_a_hash_is_kept(store: Store) -> None:
    made, secret = await store.api_keys.create("alice")
    async with store._database.read() as transaction:
        row = (await transaction.execute(select(api_keys))).mappings().one()
    assert secret not in str(dict(row))
    assert (made.hash, made.hint) == (secret_hash(secret), secret[-4:])
    assert await store.api_keys.list() == [made]


async def test_keys_differ_even_of_one_name(store: Store) -> None:
    made = [await store.api_keys.create("same") for _ in range(3)]
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 3
    assert [key.id for key in await store.api_keys.list()] == sorted(key.id for key, _ in made)


async def test_a_key_is_revoked_once(store: Store, clock: Clock) -> None:
    made, _ = await store.api_keys.create("")
    other, _ = await store.api_keys.create("other")
    at = int(clock.now)
    assert (await store.api_keys.revoke(made.id)).revoked_at == at
    clock.now += 10
    assert (await store.api_keys.revoke(made.id)).revoked_at == at
    assert {key.id: key.revoked_at for key in await store.api_keys.list()} == {made.id: at, other.id: None}
    with pytest.raises(NotFound):
        await store.api_keys.revoke("key_unknown")
