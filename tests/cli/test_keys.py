"""`headrace keys`, and what `serve` says about who may come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.store import Store
from cli.http import keys_required, who_may_come
from cli.settings import ApiCommandSettings
from tests.cli.headrace import run
from tests.store.databases import opened_store


def listed(folder: Path) -> list[dict[str, Any]]:
    done = run("keys", "list", "--json-lines", "--data-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    made = run("keys", "create", "--name", "alice", "--data-dir", str(tmp_path))
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("sk-hr-")
    (key,) = listed(tmp_path)
    assert (key["name"], key["hint"], key["revoked_at"]) == ("alice", secret[-4:], None)
    assert "hash" not in key
    revoked = run("keys", "revoke", key["id"], "key_unknown", "--data-dir", str(tmp_path))
    assert revoked.returncode == 1
    assert f"revoked {key['id']}" in revoked.stderr
    assert "no key key_unknown" in revoked.stderr
    assert listed(tmp_path)[0]["revoked_at"] is not None


def test_ids_belong_to_revoke(tmp_path: Path) -> None:
    for arguments in (("revoke",), ("list", "key_1")):
        done = run("keys", *arguments, "--data-dir", str(tmp_path))
        assert done.returncode == 2
        assert "needs ids as `keys list` shows them" in done.stderr


@pytest.mark.parametrize(
    ("host", "keyless", "required", "said"),
    [
        ("127.0.0.1", "loopback", False, "open to this machine only"),
        ("::1", "loopback", False, "open to this machine only"),
        ("0.0.0.0", "loopback", True, "open to nobody"),
        ("0.0.0.0", "anywhere", False, "open to everyone who reaches 0.0.0.0"),
    ],
)
async def test_who_may_come(store: Store, host: str, keyless: Any, required: bool, said: str) -> None:
    settings = ApiCommandSettings(host=host, keyless=keyless)
    assert keys_required(settings) is required
    assert said in await who_may_come(settings, store)


async def test_with_a_key_it_is_the_key_that_counts(store: Store) -> None:
    await store.api_keys.create("alice")
    assert "who have an API key" in await who_may_come(ApiCommandSettings(), store)


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    async with opened_store(f"sqlite:///{tmp_path}/store.db", lambda: 1_800_000_000.0) as opened:
        yield opened
