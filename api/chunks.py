"""Server-sent events of one streamed answer, as bytes.

The part of a chunk that stays the same is built once a stream; per token only the text is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.errors import ApiError
from api.requests import CHAT_COMPLETIONS
from api.responses import chat_logprobs, completion_logprobs, reasoning_fields, tool_call_delta, usage_body
from schemas.messages import Delta, PositionLogprobs, Usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\u0085\u2028\u2029"]

_encode = msgspec.json.Encoder().encode


def error_event(error: ApiError) -> bytes:
    """A failure after the first byte: nothing follows it, not even [DONE]."""
    return b"data: " + _encode(error.body()) + b"\n\n"


def _encode_json(value: Any) -> bytes:
    """JSON in which no reader finds a line end, not even one that splits lines as Unicode does."""
    encoded = _encode(value)
    if not encoded.isascii():
        for raw, escaped in _LINE_ENDS:
            encoded = encoded.replace(raw, escaped)
    return encoded


class ChunkWriter:
    """Chunks of one answer, all with the same id and creation time; `choice` numbers on over several prompts."""

    def __init__(self, endpoint: str, body_id: str, created: int, model: str, *, include_usage: bool) -> None:
        self._chat = endpoint == CHAT_COMPLETIONS
        head = {
            "id": body_id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._prefix = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._text_end = (b"}" if self._chat else b"") + b',"logprobs":null,"finish_reason":null}' + self._suffix
        self._text_starts: dict[int, bytes] = {}
        self._offsets: dict[int, int] = {}

    def opening(self, choices: int) -> bytes:
        """The role of every choice, choice 0 first; plain completions have none."""
        if not self._chat:
            return b""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._prefix + b'{"index":%d,' % index + delta + self._suffix for index in range(choices))

    def delta(self, choice: int, delta: Delta) -> bytes:
        """New text of one choice; nothing where a delta brings tokens whose text is held back."""
        if delta.finish_reason is None and not (delta.logprobs or delta.reasoning or delta.tool_calls):
            return self._text_start(choice) + _encode_json(delta.text) + self._text_end if delta.text else b""
        return self._chunk(choice, delta, b"", self._suffix)

    def _chunk(self, choice: int, delta: Delta, extra: bytes, suffix: bytes) -> bytes:
        """The whole of a delta; `extra` are more fields of its choice."""
        logprobs = b"null" if delta.logprobs is None else self._logprobs(choice, delta.logprobs)
        return b"".join(
            (
                self._prefix,
                b'{"index":%d,' % choice,
                self._text(delta),
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                b'"%s"' % delta.finish_reason.encode() if delta.finish_reason else b"null",
                extra,
                b"}",
                suffix,
            )
        )

    def usage(self, usages: Sequence[Usage]) -> bytes:
        """The chunk without choices that comes last where usage was asked for."""
        return self._prefix + b'],"usage":' + _encode(usage_body(usages)) + b"}\n\n"

    def _text_start(self, choice: int) -> bytes:
        start = self._text_starts.get(choice)
        if start is None:
            field = b'"delta":{"content":' if self._chat else b'"text":'
            start = self._text_starts[choice] = self._prefix + b'{"index":%d,' % choice + field
        return start

    def _text(self, delta: Delta) -> bytes:
        if not self._chat:
            return b'"text":' + _encode_json(delta.text)
        fields: dict[str, Any] = reasoning_fields(delta.reasoning) if delta.reasoning else {}
        if delta.text:
            fields["content"] = delta.text
        if delta.tool_calls:
            fields["tool_calls"] = [tool_call_delta(call) for call in delta.tool_calls]
        return b'"delta":' + _encode_json(fields)

    def _logprobs(self, choice: int, positions: list[PositionLogprobs]) -> bytes:
        if self._chat:
            return _encode(chat_logprobs(positions))
        offset = self._offsets.get(choice, 0)
        self._offsets[choice] = offset + sum(len(position.sampled.token) for position in positions)
        return _encode(completion_logprobs(positions, offset))
