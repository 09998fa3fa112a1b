"""Requests made up from /openapi.json, valid and not: no answer is a 5xx, and none is of a status, a content type or a
shape that the document does not name."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.settings import ApiSettings
from tests.api.conftest import SETTINGS

CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 10
"""Requests of each kind, valid and not, to each operation."""
REPEATABLE = hypothesis_settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
REQUEST_SECONDS = 10.0


@pytest.fixture
def settings() -> ApiSettings:
    """The stub worker announces itself once, and is to be there until the end."""
    return dataclasses.replace(SETTINGS, worker_expiry=600.0)


async def test_answers_are_as_documented(server: str) -> None:
    failures = await asyncio.to_thread(all_faults, server)
    assert not failures, "\n\n".join(failures)


def all_faults(url: str) -> list[str]:
    """What is wrong with the answers of every operation; what deletes comes last."""
    known = some_of_each(url)
    operations = [found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    assert len(operations) > 20
    operations.sort(key=lambda operation: operation.method == "delete")
    return [fault for operation in operations for fault in faults(operation, known)]


def faults(operation: APIOperation[Any, Any, Any], known: dict[str, Any]) -> list[str]:
    """What is wrong with the operation's answers."""
    found = []
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try:
            requests_to(operation, mode, known)()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing of it could be wrong
        except FailureGroup as error:
            found.append(f"{operation.label}, {mode.value}:\n{error}")
    return found


def requests_to(operation: Any, mode: GenerationMode, known: dict[str, Any]) -> Callable[[], None]:
    """Some requests, half of them plain ones about what exists."""

    @REPEATABLE
    @given(case=operation.as_strategy(generation_mode=mode), plain=st.none() | st.randoms(use_true_random=False))
    def ask(case: Case, plain: Random | None) -> None:
        if plain is not None:
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
            case.body = a_few_of(case.body, plain) if isinstance(case.body, dict) else case.body
        case.call_and_validate(checks=CHECKS, timeout=REQUEST_SECONDS)

    def a_few_of(body: dict[str, Any], random: Random) -> dict[str, Any]:
        """Two valid parameters may be wrong together, and of dozens some always are."""
        more = sorted(body.keys() - known.keys())
        names = known.keys() & body.keys() | set(random.sample(more, min(len(more), random.randrange(4))))
        return {name: known.get(name, body[name]) for name in names}

    return ask


def some_of_each(url: str) -> dict[str, Any]:
    """What requests may name."""
    with httpx.Client(base_url=url, timeout=REQUEST_SECONDS) as http:
        file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")}).json()["id"]
        batch = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        asked = {"model": "stub", "input": "a b", "max_output_tokens": 4}
        return {
            "file_id": file,
            "input_file_id": file,
            "batch_id": http.post("/v1/batches", json=batch).json()["id"],
            "response_id": http.post("/v1/responses", json=asked).json()["id"],
            "model": "stub",
            "messages": [{"role": "user", "content": "a b"}],
            "prompt": "a b",
            "input": "a b",
        }
