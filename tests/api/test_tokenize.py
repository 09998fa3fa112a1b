"""/tokenize, /detokenize, /version and /v1/usage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.store import Store
from broker.memory import MemoryHub
from schemas.messages import Result, Usage
from tests.api.conftest import connected
from tests.api.stub_worker import StubWorker, serving
from tests.api.test_completions import chat, plain

NOON = int(datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
async def test_tokens_of_prompts_and_conversations(http: httpx.AsyncClient, worker: StubWorker, path: str) -> None:
    answer = (await http.post(path, json=plain("a b c"))).json()
    assert answer == {"count": 3, "max_model_len": 512, "tokens": [0, 1, 2], "token_strs": None}
    answer = (await http.post(path, json=chat("x y") | {"return_token_strs": True})).json()
    assert answer["token_strs"] == ["x", "y"]
    assert [(job.prompt, job.messages and job.messages[0]["content"]) for job in worker.asked] == [
        ("a b c", None),
        (None, "x y"),
    ]
    assert worker.jobs == {}


@pytest.mark.parametrize("path", ["/v1/detokenize", "/detokenize"])
async def test_text_of_tokens(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.post(path, json={"model": "stub", "tokens": [5, 6]})).json() == {"prompt": "t5 t6"}
    assert (await http.post(path, json={"model": "stub", "tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/tokenize", {"model": "stub"}, 400, "prompt"),
        ("/v1/tokenize", plain(["a", "b"]), 400, "prompt"),
        ("/v1/tokenize", plain("a", return_token_strs=1), 400, "return_token_strs"),
        ("/v1/tokenize", plain("fail"), 400, "prompt"),
        ("/v1/tokenize", plain("a") | {"model": "gpt-9"}, 404, "model"),
        ("/v1/tokenize", [], 400, None),
        ("/v1/detokenize", {"model": "stub", "tokens": ["a"]}, 400, "tokens[0]"),
        ("/v1/detokenize", {"model": "gpt-9", "tokens": []}, 404, "model"),
    ],
)
async def test_faults_are_named(http: httpx.AsyncClient, path: str, body: Any, status: int, param: str | None) -> None:
    response = await http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_unknown_fields_are_named(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/tokenize", json=plain("a", colour="red"))
    assert response.headers["x-headrace-ignored-params"] == "colour"


async def test_where_one_worker_is_silent_another_is_asked(
    http: httpx.AsyncClient, worker: StubWorker, app: FastAPI, hub: MemoryHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = app.state.services.client.questions
    monkeypatch.setattr(questions, "_patience", 0.05)
    async with connected(hub) as broker, serving(broker, name="stub-2") as second:
        async with asyncio.timeout(60), app.state.services.models._changed:
            await app.state.services.models._changed.wait_for(lambda: len(app.state.services.models.workers()) == 2)
        response = await http.post("/v1/tokenize", json=plain("silence please"))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_answer")
        assert len(worker.asked) == len(second.asked) == 1
    assert questions._open == {}


async def test_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/version")).json()["version"].count(".") == 2


async def test_usage_by_day_and_model(http: httpx.AsyncClient, store: Store) -> None:
    for job, owner, finished, model in [
        ("a", "", NOON, "m"),
        ("b", "", NOON + 60, "m"),
        ("c", "", NOON + 86_400, "m"),
        ("d", "", NOON, "n"),
        ("e", "key_1", NOON, "m"),
        ("f", "", NOON - 86_400, "m"),
    ]:
        usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=2)
        result = Result(job=job, model=model, outcome="completed", owner=owner, usage=usage, finished=finished)
        await store.results.record(result)
    answer = (await http.get("/v1/usage", params={"start": "2026-03-02", "end": "2026-03-03"})).json()
    assert answer["key"] is None
    assert [(row["day"], row["model"], row["requests"], row["total_tokens"]) for row in answer["data"]] == [
        ("2026-03-02", "m", 2, 30),
        ("2026-03-02", "n", 1, 15),
        ("2026-03-03", "m", 1, 15),
    ]
    assert (await http.get("/v1/usage")).status_code == 200


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"start": "2026-03-02", "end": "2026-03-01"}, "start"),
        ({"start": "2020-01-01", "end": "2026-01-01"}, "start"),
        ({"start": "yesterday"}, "start"),
        ({"end": "0001-01-01"}, None),
    ],
)
async def test_days_have_to_be_days(http: httpx.AsyncClient, params: dict[str, str], param: str | None) -> None:
    response = await http.get("/v1/usage", params=params)
    if param is None:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
