"""Idempotency-Key: the same request once, however often it comes and whatever has become of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import api.keyed
from api.app import create_app
from api.jobs.recorder import Recorder
from api.settings import ApiSettings
from api.store import NotFound, Store
from broker.base import Broker, BrokerUnavailable, PublishRejected
from broker.memory import MemoryBroker, MemoryHub
from tests.api.conftest import SETTINGS, connected, known
from tests.api.sse_reader import events, texts
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, PLAIN, chat, plain

KEY = {"idempotency-key": "order-66"}
BATCH_LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


@pytest.fixture(autouse=True)
async def recorder(hub: MemoryHub, store: Store) -> AsyncIterator[None]:
    async with connected(hub) as broker:
        running = asyncio.create_task(Recorder(broker, store).run())
        yield
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def second(hub: MemoryHub, worker: StubWorker, store: Store) -> AsyncIterator[httpx.AsyncClient]:
    """Another api process on the same broker and store."""
    async with connected(hub) as broker:
        app = create_app(broker=broker, store=store, settings=SETTINGS)
        async with app.router.lifespan_context(app):
            await known(app, "stub")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
                yield client


async def recorded(store: Store, job: str) -> None:
    """Wait until a job's Result is in the store."""
    async with asyncio.timeout(60):
        while True:
            try:
                await store.results.get("", job)
            except NotFound:
                await asyncio.sleep(0.01)
            else:
                return


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_the_same_request_again_gets_the_same_answer_from_the_store(
    http: httpx.AsyncClient, second: httpx.AsyncClient, worker: StubWorker, store: Store
) -> None:
    first = await http.post(CHAT, json=chat("one two"), headers=KEY)
    assert "idempotent-replayed" not in first.headers
    (job,) = worker.jobs
    await recorded(store, job)
    for client in (http, second):
        # The order of a body's fields is not the request's affair.
        again = await client.post(CHAT, json=dict(reversed(chat("one two").items())), headers=KEY)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()
    assert len(worker.jobs) == 1


@pytest.mark.parametrize("anywhere", [False, True])
async def test_a_stream_is_streamed_again(
    http: httpx.AsyncClient, second: httpx.AsyncClient, worker: StubWorker, store: Store, anywhere: bool
) -> None:
    body = chat("one two three", stream=True, n=2, stream_options={"include_usage": True})
    first = events((await http.post(CHAT, json=body, headers=KEY)).text)
    await recorded(store, *worker.jobs)
    again = events((await (second if anywhere else http).post(CHAT, json=body, headers=KEY)).text)
    assert texts(again[:-2], 2) == texts(first[:-2], 2) == ["one two three"] * 2
    assert again[0]["id"] == first[0]["id"]
    assert again[-2]["usage"] == first[-2]["usage"]
    assert again[-1] == "[DONE]"
    assert len(worker.jobs) == 1


async def test_several_prompts_come_back_in_order(
    second: httpx.AsyncClient, http: httpx.AsyncClient, worker: StubWorker, store: Store
) -> None:
    first = await http.post(PLAIN, json=plain(["a b", "c", "d e f"]), headers=KEY)
    for job in worker.jobs:
        await recorded(store, job)
    again = await second.post(PLAIN, json=plain(["a b", "c", "d e f"]), headers=KEY)
    assert again.json() == first.json()
    assert [choice["text"] for choice in again.json()["choices"]] == ["a b", "c", "d e f"]
    assert len(worker.jobs) == 3


async def test_a_failure_is_the_answer_too(http: httpx.AsyncClient, worker: StubWorker, store: Store) -> None:
    for stream in (False, True):
        headers = {"idempotency-key": f"fails-{stream}"}
        answers = [await http.post(CHAT, json=chat("fail", stream=stream), headers=headers) for _ in range(2)]
        assert [error_of(answer) for answer in answers] == [(400, "context_length_exceeded")] * 2
    assert len(worker.jobs) == 2


async def test_another_request_with_the_key_is_refused(http: httpx.AsyncClient, worker: StubWorker) -> None:
    await http.post(CHAT, json=chat("one"), headers=KEY)
    for path, body in ((CHAT, chat("two")), (CHAT, chat("one", n=2)), (PLAIN, plain("one"))):
        response = await http.post(path, json=body, headers=KEY)
        assert error_of(response) == (409, "idempotency_key_reused")
        assert response.json()["error"]["param"] == "Idempotency-Key"
    assert len(worker.jobs) == 1


async def test_without_a_key_and_with_another_it_runs_again(http: httpx.AsyncClient, worker: StubWorker) -> None:
    for headers in ({}, {}, {"idempotency-key": "1"}, {"idempotency-key": "2"}):
        assert (await http.post(CHAT, json=chat("one"), headers=headers)).status_code == 200
    assert len(worker.jobs) == 4


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_key_that_is_none_is_refused(http: httpx.AsyncClient, key: str) -> None:
    response = await http.post(CHAT, json=chat("one"), headers={"idempotency-key": key})
    assert error_of(response) == (400, "invalid_value")


async def test_a_live_stream_attaches_here_and_elsewhere_is_in_progress(
    http: httpx.AsyncClient, second: httpx.AsyncClient, worker: StubWorker
) -> None:
    body = chat("hang-late two three", stream=True)
    first = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await worker.until_jobs(1)
    elsewhere = await second.post(CHAT, json=body, headers=KEY)
    assert error_of(elsewhere) == (409, "idempotency_in_progress")
    assert elsewhere.headers["retry-after"] == "2"
    attached = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await asyncio.sleep(0.1)
    assert not attached.done()
    await cancel_at_worker(worker)
    for answer in (first, attached):
        *chunks, error = [event for event in events((await answer).text) if event != ": keep-alive"]
        assert texts(chunks) == ["hang-late two"]
        assert error["error"]["code"] == "cancelled"
    assert len(worker.jobs) == 1


async def cancel_at_worker(worker: StubWorker) -> None:
    async with worker.seen:
        worker.cancelled |= set(worker.jobs)
        worker.seen.notify_all()


async def test_a_client_that_leaves_finds_its_answer(
    server: str, worker: StubWorker, store: Store, hub: MemoryHub
) -> None:
    body = chat("hang", stream=True)
    async with httpx.AsyncClient(base_url=server) as client:
        leaving = asyncio.create_task(client.post(CHAT, json=body, headers=KEY))
        await worker.until_jobs(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        attached = asyncio.create_task(client.post(CHAT, json=body, headers=KEY))
        await asyncio.sleep(0.1)
        assert worker.cancelled == set()
        await cancel_at_worker(worker)
        assert (await attached).json()["error"]["code"] == "cancelled"
    assert len(worker.jobs) == 1


async def test_an_api_process_that_stops_leaves_the_job_running(
    hub: MemoryHub, second: httpx.AsyncClient, worker: StubWorker, store: Store
) -> None:
    body = chat("hang-late b", stream=True)
    async with connected(hub) as broker:
        app = create_app(broker=broker, store=store, settings=SETTINGS)
        async with app.router.lifespan_context(app):
            await known(app, "stub")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
                asking = asyncio.create_task(client.post(CHAT, json=body, headers=KEY))
                await worker.until_jobs(1)
                while not app.state.services.keyed._live:  # noqa: ASYNC110 (confirmed in a moment)
                    await asyncio.sleep(0)
        assert "shutting_down" in (await asking).text
    assert worker.cancelled == set()
    assert error_of(await second.post(CHAT, json=body, headers=KEY)) == (409, "idempotency_in_progress")


async def test_what_was_cancelled_runs_anew(
    http: httpx.AsyncClient, worker: StubWorker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.keyed, "LINGER", 0.0)
    for count in (1, 2):
        asking = asyncio.create_task(http.post(CHAT, json=chat("hang"), headers=KEY))
        await worker.until_jobs(count)
        await cancel_at_worker(worker)
        assert error_of(await asking) == (500, "cancelled")
        await recorded(store, list(worker.jobs)[-1])


@pytest.mark.parametrize(("failure", "status"), [(PublishRejected("full"), 429), (BrokerUnavailable("gone"), 503)])
async def test_what_was_not_accepted_frees_its_key(
    http: httpx.AsyncClient, worker: StubWorker, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBroker, "publish", refuse)
        assert (await http.post(CHAT, json=chat("one"), headers=KEY)).status_code == status
    assert (await http.post(CHAT, json=chat("another"), headers=KEY)).status_code == 200


@pytest.mark.parametrize("settings", [ApiSettings(discovery_seconds=0.05)])
async def test_a_refusal_leaves_no_claim_and_a_replay_is_not_admitted_anew(
    http: httpx.AsyncClient, app: FastAPI, worker: StubWorker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = app.state.services.admission
    await http.post(CHAT, json=chat("one"), headers=KEY)
    await recorded(store, *worker.jobs)
    monkeypatch.setattr(admission, "_wait", lambda *_: 1000.0)
    assert (await http.post(CHAT, json=chat("one"), headers=KEY)).status_code == 200
    refused = await http.post(CHAT, json=chat("two"), headers={"idempotency-key": "new"})
    assert error_of(refused) == (429, "overloaded")
    assert await store.keys.get("", "new") is None


async def test_files_and_batches(http: httpx.AsyncClient) -> None:
    async def upload(content: bytes) -> httpx.Response:
        files = {"file": ("in.jsonl", content)}
        return await http.post("/v1/files", data={"purpose": "batch"}, files=files, headers={"idempotency-key": "f"})

    first, again = await upload(BATCH_LINE), await upload(BATCH_LINE)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert (await http.get(f"/v1/files/{first.json()['id']}/content")).content == BATCH_LINE
    assert error_of(await upload(BATCH_LINE * 2)) == (409, "idempotency_key_reused")
    assert len((await http.get("/v1/files")).json()["data"]) == 1
    body = {"input_file_id": first.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batches = [(await http.post("/v1/batches", json=body, headers={"idempotency-key": "b"})).json() for _ in range(2)]
    assert batches[0]["id"] == batches[1]["id"]
    other = body | {"metadata": {"a": "b"}}
    response = await http.post("/v1/batches", json=other, headers={"idempotency-key": "b"})
    assert error_of(response) == (409, "idempotency_key_reused")
    wrong = await http.post("/v1/batches", json=body | {"input_file_id": "none"}, headers={"idempotency-key": "w"})
    assert wrong.status_code == 404
    assert (await http.post("/v1/batches", json=body, headers={"idempotency-key": "w"})).status_code == 200


async def test_a_deleted_file_does_not_come_back(http: httpx.AsyncClient) -> None:
    for status in (200, 404):
        files = {"file": ("in.jsonl", BATCH_LINE)}
        response = await http.post("/v1/files", data={"purpose": "batch"}, files=files, headers=KEY)
        assert response.status_code == status
        if status == 200:
            await http.delete(f"/v1/files/{response.json()['id']}")


async def test_a_run_without_its_beginning_cannot_be_attached_to(
    broker: Broker, http: httpx.AsyncClient, worker: StubWorker, app: FastAPI
) -> None:
    body = chat("hang-late two", stream=True)
    first = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await worker.until_jobs(1)
    (run,) = app.state.services.keyed._runs.values()
    run.first = 1
    assert error_of(await http.post(CHAT, json=body, headers=KEY)) == (409, "idempotency_in_progress")
    run.first = 0
    await cancel_at_worker(worker)
    await first
