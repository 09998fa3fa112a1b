"""API keys over HTTP: who is let in, whose things are whose, and what a store that is away changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.errors import ApiError
from api.key_ring import STALE_SECONDS, KeyRing
from api.store import Store, StoreUnavailable
from broker.base import Broker
from schemas.messages import Result
from tests.api.conftest import SETTINGS
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, chat
from tests.store.databases import Clock

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}'


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
async def alice(store: Store) -> tuple[str, str]:
    """Id and secret of a key that the app finds when it starts."""
    made, secret = await store.api_keys.create("alice")
    return made.id, secret


@pytest.fixture
async def bob(store: Store) -> tuple[str, str]:
    made, secret = await store.api_keys.create("bob")
    return made.id, secret


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return dict(error)


async def test_without_any_key_everybody_is_let_in(http: httpx.AsyncClient, worker: StubWorker) -> None:
    assert (await http.post(CHAT, json=chat("a"), headers=bearer("whatever"))).status_code == 200
    assert {job.owner for job in worker.jobs.values()} == {""}


async def test_with_a_key_the_others_are_refused(
    alice: tuple[str, str], http: httpx.AsyncClient, worker: StubWorker
) -> None:
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer "}):
        assert error_of(await http.post(CHAT, json=chat("a"), headers=headers))["code"] == "missing_api_key"
    error = error_of(await http.post(CHAT, json=chat("a"), headers=bearer(alice[1][:-4] + "abcd")))
    assert error["code"] == "invalid_api_key"
    assert "sk-hr-...abcd" in error["message"]
    assert alice[1][6:20] not in error["message"]
    for path in ("/v1/models", "/v1/files", "/v1/batches", "/v1/files/x/content"):
        error_of(await http.get(path))
    assert worker.jobs == {}
    assert (await http.post(CHAT, json=chat("a"), headers=bearer(alice[1]))).status_code == 200
    assert {job.owner for job in worker.jobs.values()} == {alice[0]}


async def test_health_needs_no_key(alice: tuple[str, str], http: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready", "/metrics", "/openapi.json"):
        assert (await http.get(path)).status_code == 200


async def test_the_openai_client_raises_its_typed_error(alice: tuple[str, str], server: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="sk-hr-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=alice[1]) as client:
        assert [model.id async for model in client.models.list()] == ["stub"]


async def test_files_and_batches_of_another_key_are_not_there(
    alice: tuple[str, str], bob: tuple[str, str], http: httpx.AsyncClient
) -> None:
    mine, theirs = bearer(alice[1]), bearer(bob[1])
    sent = await http.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "batch"}, headers=mine)
    file_id = sent.json()["id"]
    wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert (await http.post("/v1/batches", json=wanted, headers=theirs)).status_code == 404
    batch_id = (await http.post("/v1/batches", json=wanted, headers=mine)).json()["id"]
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{batch_id}"):
        assert (await http.get(path, headers=mine)).status_code == 200
        assert (await http.get(path, headers=theirs)).status_code == 404
    assert (await http.post(f"/v1/batches/{batch_id}/cancel", headers=theirs)).status_code == 404
    assert (await http.delete(f"/v1/files/{file_id}", headers=theirs)).status_code == 404
    assert (await http.get("/v1/files", headers=theirs)).json()["data"] == []
    assert (await http.get("/v1/batches", headers=theirs)).json()["data"] == []
    assert len((await http.get("/v1/batches", headers=mine)).json()["data"]) == 1


async def test_an_idempotency_key_is_one_per_api_key(
    alice: tuple[str, str], bob: tuple[str, str], http: httpx.AsyncClient, worker: StubWorker
) -> None:
    for _, secret in (alice, bob):
        headers = bearer(secret) | {"idempotency-key": "same"}
        assert "idempotent-replayed" not in (await http.post(CHAT, json=chat("a"), headers=headers)).headers
        assert (await http.post(CHAT, json=chat("a"), headers=headers)).headers["idempotent-replayed"] == "true"
    assert sorted(job.owner for job in worker.jobs.values()) == sorted([alice[0], bob[0]])


@pytest.fixture
async def closed(broker: Broker, worker: StubWorker, store: Store) -> AsyncIterator[FastAPI]:
    """An app that lets nobody in without a key."""
    made = create_app(broker=broker, store=store, settings=replace(SETTINGS, keys_required=True))
    async with made.router.lifespan_context(made):
        yield made


async def test_where_keys_are_required_none_means_nobody_and_a_new_one_works_at_once(
    closed: FastAPI, store: Store
) -> None:
    transport = httpx.ASGITransport(app=closed)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        error_of(await http.get("/v1/models"))
        _, secret = await store.api_keys.create("first")
        closed.state.services.key_ring._tried_at -= 1  # the last look at the store was not just now
        assert (await http.get("/v1/models", headers=bearer(secret))).status_code == 200


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ring(store: Store, clock: Clock) -> AsyncIterator[KeyRing]:
    made = KeyRing(store, required=False, clock=clock)
    await made.start()
    yield made
    await made.close()


async def test_a_revoked_key_is_refused_even_if_it_was_the_last(
    alice: tuple[str, str], ring: KeyRing, store: Store
) -> None:
    assert await ring.owner(f"bearer {alice[1]}") == alice[0]
    await store.api_keys.revoke(alice[0])
    await ring._refresh()
    for header in (f"Bearer {alice[1]}", None):
        with pytest.raises(ApiError) as caught:
            await ring.owner(header)
        assert caught.value.status == 401


async def test_unknown_keys_do_not_flood_the_store(
    alice: tuple[str, str], ring: KeyRing, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    reads = 0

    async def counted() -> None:
        nonlocal reads
        reads += 1

    monkeypatch.setattr(ring, "_refresh", counted)
    for _ in range(20):
        clock.now += 0.01
        with pytest.raises(ApiError):
            await ring.owner("Bearer sk-hr-guess")
    assert reads == 0
    clock.now += 1
    with pytest.raises(ApiError):
        await ring.owner("Bearer sk-hr-guess")
    assert reads == 1


async def test_known_keys_count_for_a_while_without_the_store(
    alice: tuple[str, str], ring: KeyRing, monkeypatch: pytest.MonkeyPatch, clock: Clock, store: Store
) -> None:
    async def gone() -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(store.api_keys, "list", gone)
    clock.now += STALE_SECONDS - 1
    await ring._refresh()
    assert await ring.owner(f"Bearer {alice[1]}") == alice[0]
    clock.now += 2
    with pytest.raises(StoreUnavailable):
        await ring.owner(f"Bearer {alice[1]}")


async def test_usage_is_recorded_by_key(store: Store) -> None:
    for job, owner in (("a", "key_1"), ("b", "key_2")):
        await store.results.record(Result(job=job, model="m", outcome="completed", owner=owner))
    assert [total.jobs for total in await store.results.usage("key_1")] == [1]
