"""The events of one response as bytes, numbered from 0.

    0 created, 1 in_progress; of reasoning and then of the message, where they are: output_item.added, content_part.added,
    reasoning_text.delta or output_text.delta, one a piece of text, its done, content_part.done, output_item.done; for each
    call output_item.added, function_call_arguments.delta and .done, output_item.done; and completed, incomplete or failed

The numbers follow from the text alone, so a stream goes on behind any of them, wherever it was read before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from api.errors import ApiError
from api.response_api.body import response_body, status_of
from api.response_api.growing import MESSAGE, REASONING, GrowingItem
from api.response_api.items import (
    call_item,
    has_message,
    message_item,
    message_of,
    reasoning_item,
    reasoning_of,
    reasoning_part,
)
from api.store import ResponseRecord
from schemas.messages import Choice, Delta, Result, ToolCall

TERMINAL = {"completed": "response.completed", "incomplete": "response.incomplete", "cancelled": "response.incomplete"}
_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\u0085\u2028\u2029"]
_encode = msgspec.json.Encoder().encode


class EventWriter:
    """Writes the events behind number `after` (-1: all); those before it are counted only."""

    def __init__(self, record: ResponseRecord, after: int = -1) -> None:
        self._record = record
        self._after = after
        self._number = 0
        self._items = 0
        self._reasoning: GrowingItem | None = None
        self._message: GrowingItem | None = None

    def opening(self) -> bytes:
        """created and in_progress."""
        body = response_body(replace(self._record, cancelled_at=None), None)
        status = "queued" if self._record.request["background"] else "in_progress"
        return self._event("response.created", response=body | {"status": status}) + self._event(
            "response.in_progress", response=body
        )

    def delta(self, delta: Delta) -> bytes:
        """The deltas that new text completes. Where the message begins, the reasoning has ended."""
        reasoning = self._grow_reasoning(delta.reasoning) if delta.reasoning else b""
        return reasoning + (self._grow_message(delta.text) if delta.text else b"")

    def end(self, result: Result) -> bytes:
        """The end of the output, where there is one, and the terminal event, which always comes."""
        status = status_of(self._record, result)
        is_whole = status in ("completed", "incomplete")
        done = b"".join(self._done(choice) for choice in result.choices) if is_whole else b""
        self._number = max(self._number, self._after + 1) if not is_whole else self._number
        kind = TERMINAL.get(status, "response.failed")
        return done + self._event(kind, response=response_body(self._record, result))

    def broken(self, error: ApiError) -> bytes:
        """The stream ends here, whatever the response comes to: the same may be read on later."""
        self._number = max(self._number, self._after + 1)
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _grow_reasoning(self, text: str) -> bytes:
        if self._reasoning is None:
            beginning = reasoning_item(self._record, "in_progress", [])
            self._reasoning = GrowingItem(self._event, REASONING, self._next_index(), beginning)
        return self._reasoning.feed(text)

    def _grow_message(self, text: str) -> bytes:
        before = b"" if self._message is not None or self._reasoning is None else self._end_reasoning("completed")
        return before + self._opened_message().feed(text)

    def _opened_message(self) -> GrowingItem:
        if self._message is None:
            beginning = message_item(self._record, "in_progress", [])
            self._message = GrowingItem(self._event, MESSAGE, self._next_index(), beginning)
        return self._message

    def _end_reasoning(self, status: str) -> bytes:
        assert self._reasoning is not None
        item = reasoning_item(self._record, status, [reasoning_part(self._reasoning.text)])
        return self._reasoning.end(item)

    def _done(self, choice: Choice) -> bytes:
        """The end of what is open, and the calls: a call is told once it is whole, since where it stands among the events
        must not depend on how it came."""
        parts = []
        if self._reasoning is not None and self._message is None:
            parts.append(self._end_reasoning(reasoning_of(self._record, choice)["status"]))
        if has_message(choice):
            parts.append(self._opened_message().end(message_of(self._record, choice)))
        return b"".join([*parts, *(self._call(self._next_index(), call) for call in choice.tool_calls)])

    def _next_index(self) -> int:
        self._items += 1
        return self._items - 1

    def _call(self, index: int, call: ToolCall) -> bytes:
        item = call_item(self._record, call, "completed")
        place = {"item_id": item["id"], "output_index": index}
        opening = call_item(self._record, call, "in_progress")
        kind = "response.function_call_arguments"
        return b"".join(
            (
                self._event("response.output_item.added", output_index=index, item=opening),
                self._event(f"{kind}.delta", **place, delta=call.arguments),
                self._event(f"{kind}.done", **place, name=call.name, arguments=call.arguments),
                self._event("response.output_item.done", output_index=index, item=item),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        """One event, or nothing where the reader has it."""
        number = self._number
        self._number += 1
        if number <= self._after:
            return b""
        event = {"type": kind, "sequence_number": number, **fields}
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), _one_line(_encode(event)))


def _one_line(encoded: bytes) -> bytes:
    """JSON in which no reader finds a line end, not even one that splits lines as Unicode does."""
    if not encoded.isascii():
        for raw, escaped in _LINE_ENDS:
            encoded = encoded.replace(raw, escaped)
    return encoded
