"""Every error has the one shape, names its cause, and leaves nothing running."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.sse_reader import events, texts
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, PLAIN, chat, plain


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error, whose shape is checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b'{"a": NaN}', b'"\xff"', b'{"a": "\\ud800"}', b"[" * 100_000]
)
async def test_invalid_json(http: httpx.AsyncClient, body: bytes) -> None:
    error = error_of(await http.post(CHAT, content=body), 400)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize("body", ["[]", "3", "null", '"x"'])
async def test_json_that_is_no_object(http: httpx.AsyncClient, body: str) -> None:
    assert error_of(await http.post(PLAIN, content=body), 400)["code"] == "invalid_type"


async def test_unknown_model_is_named_before_anything_is_published(http: httpx.AsyncClient, worker: StubWorker) -> None:
    for stream in (False, True):
        error = error_of(await http.post(CHAT, json=chat("x") | {"model": "gpt-9", "stream": stream}), 404)
        assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")
        assert "gpt-9" in error["message"]
        assert "stub" in error["message"]
    assert worker.jobs == {}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat("x", temperature=3), "temperature"),
        (CHAT, chat("x", n=0), "n"),
        (CHAT, chat("x", top_p="a"), "top_p"),
        (CHAT, chat("x", tools=[{"type": "function"}]), "tools[0].function"),
        (CHAT, {"model": "stub"}, "messages"),
        (PLAIN, plain("x", logprobs=21), "logprobs"),
        (PLAIN, {"prompt": "x"}, "model"),
        (PLAIN, plain([-1]), "prompt"),
    ],
)
async def test_bad_parameters(
    http: httpx.AsyncClient, worker: StubWorker, path: str, body: dict[str, Any], param: str
) -> None:
    error = error_of(await http.post(path, json=body), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]
    assert worker.jobs == {}


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/models/", "/v1/chat/completions/"])
async def test_unknown_routes(http: httpx.AsyncClient, path: str) -> None:
    error = error_of(await http.post(path), 404 if path != "/v1/models/" else 405)
    assert path in error["message"]


async def test_wrong_method(http: httpx.AsyncClient) -> None:
    response = await http.get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


async def test_large_bodies(http: httpx.AsyncClient, worker: StubWorker) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 65_536

    announced = await http.post(CHAT, content=b"x" * ((1 << 20) + 1))
    assert error_of(announced, 413)["code"] == "body_too_large"
    assert error_of(await http.post(CHAT, content=endless()), 413)["code"] == "body_too_large"
    assert worker.jobs == {}


async def test_a_body_of_100_mb_over_a_socket(server: str) -> None:
    async with httpx.AsyncClient(base_url=server, timeout=60) as client:
        response = await client.post(CHAT, content=b" " * 100_000_000)
        assert error_of(response, 413)["code"] == "body_too_large"
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_fails_before_its_first_token(http: httpx.AsyncClient, stream: bool) -> None:
    error = error_of(await http.post(CHAT, json=chat("fail", stream=stream)), 400)
    assert error == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


async def test_a_stream_that_fails_later_ends_in_an_error_event(http: httpx.AsyncClient, worker: StubWorker) -> None:
    response = await http.post(CHAT, json=chat("fail-late b c", stream=True))
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert texts(chunks) == ["fail-late b"]
    assert last == {"error": {"message": "broken", "type": "server_error", "param": None, "code": None}}
    error_of(await http.post(CHAT, json=chat("fail-late b c")), 500)
    assert worker.cancelled == set()


async def test_an_unexpected_exception_shows_no_trace(app: FastAPI, http: httpx.AsyncClient) -> None:
    async def broken() -> None:
        raise RuntimeError("secret detail")

    app.add_api_route("/broken", broken)
    response = await http.get("/broken")
    error = error_of(response, 500)
    assert error["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in error["message"]


async def test_request_id_is_kept_where_it_is_safe(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health", headers={"x-request-id": "a-b.c:1"})).headers["x-request-id"] == "a-b.c:1"
    for bad in ("a b", "x" * 129, "é".encode()):
        response = await http.get(
            "/health", headers=[(b"x-request-id", bad if isinstance(bad, bytes) else bad.encode())]
        )
        assert response.headers["x-request-id"].startswith("req_")
    streamed = await http.post(CHAT, json=chat("a", stream=True), headers={"x-request-id": "mine"})
    assert streamed.headers["x-request-id"] == "mine"
