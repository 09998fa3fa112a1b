"""`headrace keys`: create, list and revoke API keys."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from datetime import datetime

from api.store import ApiKey, NotFound, Store, StoreError
from cli.errors import StartError
from cli.lifecycle import say
from cli.services import opened_store
from cli.settings import KeysSettings

EXIT_NOT_DONE = 1


def run(settings: KeysSettings) -> None:
    """Do what is asked; ends with 1 where a key to revoke is not there. Raises StartError."""
    if bool(settings.ids) != (settings.action == "revoke"):
        raise StartError("`keys revoke` needs ids as `keys list` shows them; the other actions take none")
    if not asyncio.run(_run(settings)):
        sys.exit(EXIT_NOT_DONE)


async def _run(settings: KeysSettings) -> bool:
    # The file in the data directory is this machine's own; a database elsewhere is migrated by `headrace migrate`.
    async with opened_store(settings, migrate=not settings.database_url) as store:
        try:
            return await _act(store, settings)
        except StoreError as error:
            raise StartError(f"the database failed: {error}") from error


async def _act(store: Store, settings: KeysSettings) -> bool:
    if settings.action == "create":
        made, secret = await store.api_keys.create(settings.name)
        say(f"created {made.id}; the key itself is shown this once, on stdout:")
        print(secret)
        return True
    if settings.action == "list":
        _list(await store.api_keys.list(), as_json=settings.json_lines)
        return True
    return all([await _revoke(store, key_id) for key_id in settings.ids])


async def _revoke(store: Store, key_id: str) -> bool:
    try:
        await store.api_keys.revoke(key_id)
    except NotFound:
        say(f"no key {key_id}")
        return False
    say(f"revoked {key_id}")
    return True


def _list(keys: list[ApiKey], *, as_json: bool) -> None:
    for key in keys:
        if as_json:
            fields = asdict(key)
            del fields["hash"]
            print(json.dumps(fields, ensure_ascii=False))
            continue
        created = datetime.fromtimestamp(key.created_at).isoformat(" ")
        state = "in force" if key.revoked_at is None else f"revoked {datetime.fromtimestamp(key.revoked_at)}"
        print(f"{key.id}  ...{key.hint}  created {created}  {state}  {key.name}".rstrip())
    say(f"{len(keys)} key{'s' * (len(keys) != 1)}")
