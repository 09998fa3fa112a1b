"""Pieces of the OpenAPI description: bodies are read within a limit by hand, so the framework cannot know them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from schemas.openai.errors import ErrorResponse


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The request body of a route, as JSON Schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route answers with."""
    return {status: {"model": ErrorResponse} for status in statuses}
