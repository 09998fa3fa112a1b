"""Bad input against the real engine: a clear 4xx in OpenAI's shape, and nothing left running."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.service import MODEL, Service, run_batch

pytestmark = pytest.mark.model
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
VOCABULARY = 49_152
HUNDRED_MB = 100_000_000


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Ends with the service as idle as it was."""
    with service.client() as made:
        yield made
    service.assert_idle()


def refused(answer: httpx.Response, status: int, code: str | None, param: str | None = None) -> str:
    """Check an error's shape; returns its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    message: str = error["message"]
    return message


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "x"', b'{"temperature": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_invalid_json(client: httpx.Client, body: bytes) -> None:
    refused(client.post(CHAT, content=body), 400, "invalid_json")


def test_a_body_that_is_no_object(client: httpx.Client) -> None:
    refused(client.post(CHAT, json=[MESSAGES]), 400, "invalid_type")


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(client: httpx.Client, stream: bool) -> None:
    answer = client.post(CHAT, json={"model": "gpt-none", "messages": MESSAGES, "stream": stream})
    assert MODEL in refused(answer, 404, "model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("token", [VOCABULARY, 2**31, 2**63, 10**30])
def test_unknown_token_id(client: httpx.Client, token: int, stream: bool) -> None:
    answer = client.post(COMPLETIONS, json={"model": MODEL, "prompt": [1, token], "stream": stream})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("parameter", [{"logit_bias": {str(VOCABULARY): 1}}, {"stop_token_ids": [VOCABULARY]}])
def test_unknown_token_id_in_a_parameter(client: httpx.Client, parameter: dict[str, Any]) -> None:
    answer = client.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", **parameter})
    (name,) = parameter
    assert name in refused(answer, 400, answer.json()["error"]["code"], name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]}),
        (COMPLETIONS, {"prompt": "word " * 9000}),
        (COMPLETIONS, {"prompt": [5] * 8192}),
        (CHAT, {"messages": MESSAGES, "max_tokens": 8192}),
    ],
    ids=["chat", "text", "tokens", "max_tokens"],
)
def test_prompt_over_the_context(client: httpx.Client, endpoint: str, body: dict[str, Any], stream: bool) -> None:
    answer = client.post(endpoint, json={"model": MODEL, "stream": stream, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "8192" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "parameter",
    [
        *({"temperature": value} for value in (-0.1, 2.1, "hot", True)),
        *({"top_p": value} for value in (0, 1.1)),
        *({"top_k": value} for value in (-2, 1.5)),
        *({"max_tokens": value} for value in (0, -1, 2**40)),
        *({"n": value} for value in (0, 129)),
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"repetition_penalty": 0},
        {"min_p": 2},
        {"stop": ""},
        {"logit_bias": {"a": 1}},
        {"seed": 2**64},
        {"messages": []},
        {"messages": "Hi"},
    ],
    ids=str,
)
def test_out_of_range_parameters(client: httpx.Client, parameter: dict[str, Any]) -> None:
    answer = client.post(CHAT, json={"model": MODEL, "messages": MESSAGES, **parameter})
    (name,) = parameter
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == name


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, "/v1/batches"])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_of_100_mb(client: httpx.Client, endpoint: str, announced: bool) -> None:
    body = b'{"model": "%s", "x": "%s"}' % (MODEL.encode(), b"x" * HUNDRED_MB)
    chunks = (body[start : start + 1_000_000] for start in range(0, len(body), 1_000_000))
    answer = client.post(endpoint, content=body if announced else chunks)
    refused(answer, 413, "body_too_large")


def line(custom_id: str, **body: Any) -> str:
    whole = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": whole})


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("{not json", "invalid_json_line"),
        (line("a"), "duplicate_custom_id"),
        (line("b").replace("POST", "GET"), "invalid_method"),
        (line("b").replace(CHAT, "/v1/none"), "invalid_url"),
        (line("b").replace('"body"', '"boby"'), "missing_required_parameter"),
    ],
    ids=["malformed", "duplicate", "method", "url", "no-body"],
)
def test_a_bad_batch_line_fails_the_batch(client: httpx.Client, bad: str, code: str) -> None:
    batch = run_batch(client, "\n".join([line("a"), bad, line("c")]).encode(), CHAT)
    assert batch["status"] == "failed"
    assert [(error["line"], error["code"]) for error in batch["errors"]["data"]] == [(2, code)]
    assert batch["output_file_id"] is None


def test_a_bad_body_fails_its_batch_line_alone(client: httpx.Client) -> None:
    lines = [line("good"), line("hot", temperature=9), line("long", max_tokens=9000), line("other", model="gpt-none")]
    batch = run_batch(client, "\n".join(lines).encode(), CHAT)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 3}
    errors = {
        item["custom_id"]: (item["response"]["status_code"], item["response"]["body"]["error"]["code"])
        for item in map(json.loads, client.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines())
    }
    assert errors == {
        "hot": (400, "invalid_value"),
        "long": (400, "context_length_exceeded"),
        "other": (404, "model_not_found"),
    }


def test_batches_of_what_is_not_there(client: httpx.Client) -> None:
    request = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    refused(client.post("/v1/batches", json=request), 404, "not_found", "id")
    refused(client.post("/v1/batches", json={**request, "endpoint": "/v1/none"}), 400, "invalid_value", "endpoint")
    refused(client.get("/v1/none"), 404, "not_found")
