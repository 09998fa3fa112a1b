"""/openapi.json: what the framework cannot see is added to what it finds out.

Routes read their bodies by hand, so their schemas come with definitions of their own, which belong to the document's
components; and authentication is a dependency of whole routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.answer_examples import ANSWERS
from api.examples import EXAMPLES
from api.openapi_streams import COMPONENTS, add_stream

DEFS = "#/$defs/"
SCHEME = "API key"
DESCRIPTION = """An OpenAI-compatible inference service in which a message queue is the road between HTTP and the GPU.

Errors are `{"error": {"message", "type", "param", "code"}}`, whatever went wrong. Every answer has an `x-request-id`, taken
over from the request where it has one. Parameters that nobody here knows are accepted, and named in the answer's
`x-headrace-ignored-params`; those that are known and not served are refused with 400."""


def install(app: FastAPI, *, version: str, public: frozenset[str]) -> None:
    """Make `app` describe itself, once it is asked. Paths in `public` need no key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, version, public)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def describe(app: FastAPI, version: str, public: frozenset[str]) -> dict[str, Any]:
    """The whole document."""
    made = get_openapi(title=app.title, version=version, description=DESCRIPTION, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    components["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, method, operation in operations(made):
        _hoist(operation, schemas)
        if path not in public:
            _require_key(operation)
        add_stream(method, path, operation, schemas)
        _drop_unused_validation(operation)
        _add_example(operation, EXAMPLES.get((method, path)))
        if (answer := ANSWERS.get((method, path))) is not None:
            operation["responses"]["200"]["content"]["application/json"]["example"] = answer
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Definitions inside a body's schema become components."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, definition in content["schema"].pop("$defs", {}).items():
            schemas.setdefault(name, _relocated(definition))
        content["schema"] = _relocated(content["schema"])


def _relocated(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_relocated(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _relocated(value) for name, value in schema.items()}
    if isinstance(moved.get("$ref"), str):
        moved["$ref"] = moved["$ref"].replace(DEFS, COMPONENTS)
    return moved


def _require_key(operation: dict[str, Any]) -> None:
    """An empty alternative: as long as there is no key, none is needed."""
    operation["security"] = [{SCHEME: []}, {}]
    operation["responses"]["401"] = _error("No API key, or a wrong one")
    operation["responses"].setdefault("503", _error("A service behind this one is away"))


def _drop_unused_validation(operation: dict[str, Any]) -> None:
    """The framework's own 422 is a 400 here, in the shape of every error."""
    if operation["responses"].pop("422", None) is not None:
        operation["responses"].setdefault("400", _error("A parameter is not valid"))


def _error(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"{COMPONENTS}ErrorResponse"}}}
    return {"description": description, "content": content}


def _add_example(operation: dict[str, Any], example: Any) -> None:
    if example is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = example
