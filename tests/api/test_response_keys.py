"""/v1/responses with an Idempotency-Key: one response, however often it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from api.jobs.recorder import Recorder
from api.store import Store
from broker.memory import MemoryHub
from tests.api.conftest import connected
from tests.api.stub_worker import StubWorker
from tests.api.test_errors import error_of
from tests.api.test_response_objects import RESPONSES, asking


@pytest.fixture(autouse=True)
async def recorder(hub: MemoryHub, store: Store) -> AsyncIterator[None]:
    async with connected(hub) as broker:
        running = asyncio.create_task(Recorder(broker, store).run())
        yield
        running.cancel()
        await asyncio.wait([running])


async def test_an_idempotency_key_gives_the_same_response(
    http: httpx.AsyncClient, worker: StubWorker, store: Store
) -> None:
    for number, fields in enumerate(({}, {"stream": True}, {"background": True})):
        headers = {"idempotency-key": f"k{number}"}
        body = asking("one two", **fields)
        first, again = [await http.post(RESPONSES, json=body, headers=headers) for _ in range(2)]
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.headers["idempotent-replayed"] == "true"
        if not fields.get("background"):
            assert again.text == first.text
        else:
            assert again.json()["id"] == first.json()["id"]
        other = await http.post(RESPONSES, json=asking("three"), headers=headers)
        assert error_of(other, 409)["code"] == "idempotency_key_reused"
    assert len(worker.jobs) == 3
    unstored = await http.post(RESPONSES, json=asking("x", store=False), headers={"idempotency-key": "k"})
    assert error_of(unstored, 400)["param"] == "store"


async def test_a_keyed_response_that_was_never_published_is_published(
    http: httpx.AsyncClient, worker: StubWorker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its process dies between the row and the publish: the claim lapses, and the row is there."""
    headers = {"idempotency-key": "k"}
    body = asking("one two", background=True)
    made = (await http.post(RESPONSES, json=body, headers=headers)).json()
    record = await store.keys.get("", "k")
    assert record is not None
    await store.keys.release(record)
    claimed, mine = await store.keys.claim("", "k", record.fingerprint, record.object_id)
    assert mine
    lapsed = store.clock() + 61
    monkeypatch.setattr(store.keys, "_clock", lambda: lapsed)
    again = (await http.post(RESPONSES, json=body, headers=headers)).json()
    assert again["id"] == made["id"] == claimed.object_id
    assert list(worker.jobs) == [made["id"].removeprefix("resp_")]
