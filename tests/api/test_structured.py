"""What an output must match, from the HTTP body to the Job."""

from __future__ import annotations

from typing import Any

import pytest

from api.errors import ApiError
from api.requests import CHAT_COMPLETIONS, PLAIN_COMPLETIONS, ignored_params, job_from_body, parse_body
from schemas.messages import MAX_GRAMMAR_LENGTH, Grammar, Job, decode, encode

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
PLAIN = {"model": "m", "prompt": "once"}
SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}}'
ANY_OBJECT = '{"type":"object"}'


def response_format(schema: Any = SCHEMA, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **fields}}


def grammar(kind: Any, value: str, param: str = "structured_outputs") -> Grammar:
    return Grammar(kind=kind, value=value, param=param)


FORMS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
    ({"structured_outputs": {}}, None),
    ({"response_format": {"type": "json_object"}}, grammar("json", ANY_OBJECT, "response_format")),
    ({"response_format": response_format(strict=True)}, grammar("json", SCHEMA_TEXT, "response_format")),
    ({"response_format": response_format(description="d")}, grammar("json", SCHEMA_TEXT, "response_format")),
    ({"structured_outputs": {"json": SCHEMA}}, grammar("json", SCHEMA_TEXT)),
    ({"structured_outputs": {"json": SCHEMA_TEXT}}, grammar("json", SCHEMA_TEXT)),
    ({"structured_outputs": {"json_object": True}}, grammar("json", ANY_OBJECT)),
    ({"structured_outputs": {"regex": "a+"}}, grammar("regex", "a+")),
    ({"structured_outputs": {"choice": ["b", "a"]}}, grammar("choice", '["b","a"]')),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, grammar("grammar", 'start: "a"')),
    ({"guided_json": SCHEMA}, grammar("json", SCHEMA_TEXT, "guided_json")),
    ({"guided_regex": "a+"}, grammar("regex", "a+", "guided_regex")),
    ({"guided_choice": ["b"]}, grammar("choice", '["b"]', "guided_choice")),
    ({"guided_grammar": "x"}, grammar("grammar", "x", "guided_grammar")),
]


@pytest.mark.parametrize(("fields", "expected"), FORMS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize(("endpoint", "body"), [(CHAT_COMPLETIONS, CHAT), (PLAIN_COMPLETIONS, PLAIN)])
def test_every_form_arrives(endpoint: str, body: Any, fields: dict[str, Any], expected: Grammar | None) -> None:
    job = job_from_body(endpoint, {**body, **fields}, job_id="j")
    assert job.sampling.grammar == expected
    assert decode(Job, encode(job)) == job
    assert ignored_params(endpoint, parse_body(endpoint, {**body, **fields})) == []


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": "json"}, "response_format", "invalid_type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        "response_format.json_schema.schema",
        "missing_required_parameter",
    ),
    ({"response_format": response_format(schema="x")}, "response_format.json_schema.schema", "invalid_type"),
    ({"response_format": response_format(name="a b")}, "response_format.json_schema.name", "invalid_value"),
    ({"response_format": response_format(strict="yes")}, "response_format.json_schema.strict", "invalid_type"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "invalid_type"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "invalid_value"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "invalid_value"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
    ({"structured_outputs": {"regex": "a" * (MAX_GRAMMAR_LENGTH + 1)}}, "structured_outputs", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), FAULTS, ids=lambda value: str(value)[:60])
def test_faults_are_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(CHAT_COMPLETIONS, {**CHAT, **fields}, job_id="j")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code), caught.value.message
