"""/openapi.json and /docs: whole, true, and without anything from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi.routing import APIRoute

from api.answer_examples import ANSWERS
from api.app import PUBLIC_ROUTERS, ROUTERS
from api.examples import EXAMPLES
from api.openapi_document import operations
from api.openapi_streams import CHUNKS, NUMBERED
from api.routes.version import VERSION
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, chat

PUBLIC = ("/health", "/ready", "/metrics", "/version")


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    made: dict[str, Any] = (await http.get("/openapi.json")).json()
    return made


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return own + [found for value in node.values() for found in references(value)]


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert "$defs" not in str(document)
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= set(document["components"]["schemas"])
    assert document["info"]["version"] == VERSION


async def test_every_route_is_there_with_its_errors(document: dict[str, Any]) -> None:
    listed = {(path, method) for path, method, _ in operations(document)}
    served = {
        (re.sub(r":path}", "}", route.path), method.lower())
        for module in (*ROUTERS, *PUBLIC_ROUTERS)
        for route in module.router.routes
        if isinstance(route, APIRoute) and route.include_in_schema and module.router.include_in_schema
        for method in route.methods
    }
    assert listed == served
    for path, _, operation in operations(document):
        assert ("401" in operation["responses"]) == ("security" in operation) == (path not in PUBLIC)
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path != "/ready":
                assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")


async def test_examples_are_valid_and_complete(document: dict[str, Any]) -> None:
    with_body = {
        (method, path): operation["requestBody"]["content"]["application/json"]
        for path, method, operation in operations(document)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert with_body.keys() == EXAMPLES.keys()
    for content in with_body.values():
        schema = content["schema"] | {"components": document["components"]}
        jsonschema.validate(content["example"], schema)


async def test_every_operation_says_what_it_does_and_shows_an_answer(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert operation["description"], path
        content = operation["responses"]["200"]["content"]
        if "application/json" not in content:
            assert path in ("/metrics", "/v1/files/{file_id}/content")
            continue
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(ANSWERS[method, path], schema)
        assert content["application/json"]["example"] == ANSWERS[method, path]


async def test_streams_are_described_by_their_events(document: dict[str, Any]) -> None:
    streamed = {
        (method, path): operation["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
        for path, method, operation in operations(document)
        if "text/event-stream" in operation["responses"]["200"]["content"]
    }
    assert streamed.keys() == {*CHUNKS, *NUMBERED}
    for item in streamed.values():
        jsonschema.validate({"event": "response.created", "data": "{}"}, item)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"event": "response.created"}, item)


async def test_examples_are_accepted(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    for (method, path), example in EXAMPLES.items():
        model = "vectors" if path == "/v1/embeddings" else "stub"
        body = example | ({"model": model} if "model" in example else {})
        response = await http.request(method, path, json=body)
        assert response.status_code == (404 if path == "/v1/batches" else 200), response.text


async def test_answers_match_their_schemas(http: httpx.AsyncClient, document: dict[str, Any]) -> None:
    answers = {
        CHAT: (await http.post(CHAT, json=chat("a b", logprobs=True))).json(),
        "/v1/models": (await http.get("/v1/models")).json(),
        "/v1/usage": (await http.get("/v1/usage")).json(),
    }
    for path, answer in answers.items():
        operation = document["paths"][path]["post" if path == CHAT else "get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, schema | {"components": document["components"]})


async def test_the_page_loads_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    response = await http.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", response.text)
    assert 'fetch("openapi.json")' in response.text
