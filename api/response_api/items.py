"""The items of a response's output, from the choice that its job came to: a message, then the calls of functions."""

from __future__ import annotations

from typing import Any

from api.store import ResponseRecord
from schemas.messages import Choice, ToolCall

OUTPUT_PREFIX = "msg_"
CALL_PREFIX = "fc_"


def output_items(record: ResponseRecord, choice: Choice) -> list[dict[str, Any]]:
    """All finished items."""
    message = [message_of(record, choice)] if has_message(choice) else []
    return message + [call_item(record, call, "completed") for call in choice.tool_calls]


def has_message(choice: Choice) -> bool:
    """Calls may come without a word."""
    return bool(choice.text) or not choice.tool_calls


def message_of(record: ResponseRecord, choice: Choice) -> dict[str, Any]:
    """The finished message."""
    status = "incomplete" if choice.finish_reason == "length" else "completed"
    return message_item(record, status, [text_part(choice.text)])


def message_item(record: ResponseRecord, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": output_id(record),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def output_id(record: ResponseRecord) -> str:
    """The id of the one message."""
    return f"{OUTPUT_PREFIX}{record.job_id}"


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(record: ResponseRecord, call: ToolCall, status: str) -> dict[str, Any]:
    """A call of a function; without its arguments while it is in progress."""
    return {
        "id": f"{CALL_PREFIX}{record.job_id}_{call.index}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": "" if status == "in_progress" else call.arguments,
        "status": status,
    }
