"""The items of a response's output, from the choice that its job came to: reasoning, a message, the calls of functions."""

from __future__ import annotations

from typing import Any

from api.store import ResponseRecord
from schemas.messages import Choice, ToolCall

OUTPUT_PREFIX = "msg_"
CALL_PREFIX = "fc_"
REASONING_PREFIX = "rs_"


def output_items(record: ResponseRecord, choice: Choice) -> list[dict[str, Any]]:
    """All finished items."""
    items = [reasoning_of(record, choice)] if choice.reasoning else []
    items += [message_of(record, choice)] if has_message(choice) else []
    return items + [call_item(record, call, "completed") for call in choice.tool_calls]


def has_message(choice: Choice) -> bool:
    """Calls may come without a word, and reasoning may be all that there was room for."""
    return bool(choice.text) or not (choice.tool_calls or choice.reasoning)


def reasoning_of(record: ResponseRecord, choice: Choice) -> dict[str, Any]:
    """The finished reasoning."""
    is_cut = choice.finish_reason == "length" and not (choice.text or choice.tool_calls)
    return reasoning_item(record, "incomplete" if is_cut else "completed", [reasoning_part(choice.reasoning)])


def reasoning_item(record: ResponseRecord, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """In full, not as a summary."""
    item = {"id": f"{REASONING_PREFIX}{record.job_id}", "type": "reasoning", "status": status}
    return item | {"summary": [], "content": content, "encrypted_content": None}


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


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
