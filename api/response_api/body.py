"""The response object, put together of what was asked and of how its job ended."""

from __future__ import annotations

from typing import Any

from api.errors import RATE_LIMIT, SERVER, error_of
from api.response_api.items import output_items
from api.store import ResponseRecord
from schemas.messages import Result, Usage

_CONSTANT: dict[str, Any] = {
    "max_tool_calls": None,
    "reasoning": {"effort": None, "summary": None},  # of responses kept before efforts were
    "service_tier": "default",
    "top_logprobs": 0,
    "truncation": "disabled",
}


def response_body(record: ResponseRecord, result: Result | None, waiting: str = "in_progress") -> dict[str, Any]:
    """The object; `waiting` is its status while there is no Result."""
    status = status_of(record, result, waiting)
    ended = status not in ("queued", "in_progress")
    is_whole = status in ("completed", "incomplete")
    return {
        "id": record.id,
        "object": "response",
        "created_at": int(record.created_at),
        "completed_at": int(result.finished) if result is not None and is_whole else None,
        "status": status,
        "error": _error(result) if result is not None and status == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [item for choice in result.choices for item in output_items(record, choice)]
        if result is not None and is_whole
        else [],
        "previous_response_id": record.previous_id,
        "usage": _usage(result.usage) if result is not None and ended else None,
        **_CONSTANT,
        **record.request,
    }


def status_of(record: ResponseRecord, result: Result | None, waiting: str = "in_progress") -> str:
    """Cancelled is what has been called so, whatever its job came to after all."""
    if record.cancelled_at is not None:
        return "cancelled"
    if result is None:
        return waiting
    match result.outcome:
        case "completed":
            return "incomplete" if any(choice.finish_reason == "length" for choice in result.choices) else "completed"
        case "cancelled":
            return "cancelled"
    return "failed"


def _error(result: Result) -> dict[str, Any] | None:
    """The codes are those that OpenAI's clients know; the service's own is told as the type."""
    error = error_of(result)
    if error is None:
        return None
    codes = {SERVER: "server_error", RATE_LIMIT: "rate_limit_exceeded"}
    code = codes.get(error.type, "invalid_prompt")
    return {"code": code, "message": error.message, "type": error.code or error.type, "param": error.param}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
