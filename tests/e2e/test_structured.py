"""Structured outputs of the real model over HTTP, all at once and at temperature 1: each parses and matches, or is cut."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from tests.e2e.service import MODEL, Service, run_batch

pytestmark = pytest.mark.model
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SHORT = {"type": "string", "maxLength": 12}
POINT = closed(x={"type": "number"}, y={"type": "number"})
NODE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": closed(v={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
}
SCHEMAS: list[dict[str, Any]] = [
    closed(name=SHORT, age={"type": "integer", "minimum": 0, "maximum": 150}),
    closed(colour={"enum": ["red", "green", "blue"]}, bright={"type": "boolean"}),
    closed(when={"type": "string", "format": "date-time"}),
    closed(id={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}),
    closed(points={"type": "array", "items": POINT, "minItems": 1, "maxItems": 3}),
    closed(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
    {"anyOf": [closed(cat=SHORT), closed(dog={"type": "boolean"})]},
    {"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 2, "maxItems": 4},
    closed(pair={"type": "array", "prefixItems": [SHORT, {"type": "integer"}], "items": False, "minItems": 2}),
    NODE,
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    closed(mail={"type": "string", "format": "email"}, nested=closed(deep=closed(er={"type": "null"}))),
]  # fmt: skip


def ask(client: httpx.Client, seed: int, endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": "Answer:"}
    if endpoint == CHAT:
        prompt = {"messages": [{"role": "user", "content": "Give an example."}]}
    body = {"model": MODEL, "seed": seed, "temperature": 1.0, "max_tokens": 64, **prompt, **fields}
    answer = client.post(endpoint, json=body)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "example", "strict": True, "schema": schema}}


def check(schema: dict[str, Any], text: str, finish_reason: str) -> bool:
    """Whether the output was whole. Fails where a whole one does not match."""
    if finish_reason == "length":
        return False
    assert finish_reason == "stop"
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    checker.validate(json.loads(text))
    return True


def test_schemas_at_temperature_one(service: Service) -> None:
    """Two choices of each, all together."""
    with service.client() as client, ThreadPoolExecutor(len(SCHEMAS)) as pool:
        schemas = list(enumerate(SCHEMAS))
        answers = pool.map(lambda item: ask(client, item[0], n=2, response_format=strict(item[1])), schemas)
        ends = [
            check(schema, choice["message"]["content"], choice["finish_reason"])
            for schema, answer in zip(SCHEMAS, answers, strict=True)
            for choice in answer["choices"]
        ]
    assert len(ends) == 2 * len(SCHEMAS)
    assert sum(ends) > len(SCHEMAS)
    service.assert_idle()


def test_regex_choice_grammar_and_any_object(service: Service) -> None:
    forms: list[tuple[dict[str, Any], str]] = [
        ({"regex": "[0-9]{3}-[a-z]{2}"}, "[0-9]{3}-[a-z]{2}"),
        ({"choice": ["positive", "negative"]}, "positive|negative"),
        ({"grammar": 'root ::= "(" [a-c]* ")"'}, r"\([abc]*\)"),
    ]
    with service.client() as client:
        for endpoint in (CHAT, COMPLETIONS):
            for outputs, pattern in forms:
                (choice,) = ask(client, 1, endpoint, structured_outputs=outputs)["choices"]
                text = choice["message"]["content"] if endpoint == CHAT else choice["text"]
                assert choice["finish_reason"] == "length" or re.fullmatch(pattern, text), text
        choice = ask(client, 1, response_format={"type": "json_object"}, max_tokens=200)["choices"][0]
        assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_schema_is_a_400(service: Service, stream: bool) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    with service.client() as client:
        answer = client.post(CHAT, json={**body, "response_format": strict({"type": "objec"})})
        unknown = client.post(CHAT, json={**body, "structured_outputs": {"regex": "(?=a)"}})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "response_format")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "structured_outputs")


def test_streamed_and_whole_are_the_same(service: Service) -> None:
    with service.client() as client:
        whole = ask(client, 3, response_format=strict(SCHEMAS[0]))["choices"][0]
        body = {"model": MODEL, "seed": 3, "temperature": 1.0, "max_tokens": 64, "stream": True}
        messages = [{"role": "user", "content": "Give an example."}]
        answer = client.post(CHAT, json={**body, "messages": messages, "response_format": strict(SCHEMAS[0])})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


def test_a_batch(service: Service) -> None:
    lines = []
    for index, schema in enumerate([SCHEMAS[1], SCHEMAS[3], {"type": "objec"}]):
        messages = [{"role": "user", "content": "Give an example."}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 40, "response_format": strict(schema)}
        lines.append(json.dumps({"custom_id": str(index), "method": "POST", "url": CHAT, "body": body}))
    with service.client() as client:
        batch = run_batch(client, "\n".join(lines).encode(), CHAT)
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        output = client.get(f"/v1/files/{batch['output_file_id']}/content").text
        errors = client.get(f"/v1/files/{batch['error_file_id']}/content").text
    for item in map(json.loads, output.splitlines()):
        (choice,) = item["response"]["body"]["choices"]
        check([SCHEMAS[1], SCHEMAS[3]][int(item["custom_id"])], choice["message"]["content"], choice["finish_reason"])
    (failed,) = map(json.loads, errors.splitlines())
    assert (failed["response"]["status_code"], failed["custom_id"]) == (400, "2")
