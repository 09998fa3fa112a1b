"""A response is its owner's: to another API key it is not there."""

from __future__ import annotations

import httpx
import pytest

from api.store import Store

RESPONSES = "/v1/responses"


@pytest.fixture
async def keys(store: Store) -> list[dict[str, str]]:
    """Headers of two keys that the app finds when it starts."""
    secrets = [(await store.api_keys.create(name))[1] for name in ("alice", "bob")]
    return [{"authorization": f"Bearer {secret}"} for secret in secrets]


@pytest.mark.parametrize("background", [False, True])
async def test_another_key_finds_nothing(keys: list[dict[str, str]], http: httpx.AsyncClient, background: bool) -> None:
    alice, bob = keys
    body = {"model": "stub", "input": "one two", "background": background}
    made = (await http.post(RESPONSES, json=body, headers=alice)).json()["id"]
    for method, path in (
        ("GET", ""),
        ("GET", "?stream=true"),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        response = await http.request(method, f"{RESPONSES}/{made}{path}", headers=bob)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), (method, path)
    follow_up = {"model": "stub", "input": "three", "previous_response_id": made}
    response = await http.post(RESPONSES, json=follow_up, headers=bob)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert (await http.get(f"{RESPONSES}/{made}")).status_code == 401
    assert (await http.get(f"{RESPONSES}/{made}", headers=alice)).status_code == 200
