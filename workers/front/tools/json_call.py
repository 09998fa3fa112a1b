"""A call written as JSON, `{"name": ..., "arguments": {...}}`: its arguments are passed on while they come."""

from __future__ import annotations

import json

from workers.front.tools.sink import Sink
from workers.front.tools.source import Emit, Scan, Source

ARGUMENT_KEYS = ("arguments", "parameters")


def json_call(source: Source, sink: Sink, *, known_only: bool = False) -> Scan[bool]:
    """Read one call. False, with nothing said, where it is none; with `known_only` other functions' calls are none.
    Once the arguments have begun it is a call, whatever follows."""
    return (yield from _JsonCall(source, sink, known_only=known_only).read())


class _JsonCall:
    def __init__(self, source: Source, sink: Sink, *, known_only: bool) -> None:
        self._source = source
        self._sink = sink
        self._known_only = known_only
        self._name = ""
        self._held = ""
        self._started = False

    def read(self) -> Scan[bool]:
        whole = yield from self._members()
        if whole and not self._started and self._start():
            self._sink.arguments(self._held or "{}")
        if self._started:
            self._sink.end_call()
        return self._started

    def _members(self) -> Scan[bool]:
        """False where this is not, or not to its end, an object."""
        separator = yield from self._source.literal("{")
        while separator:
            yield from self._source.space()
            if not (yield from self._member()):
                return False
            yield from self._source.space()
            separator = yield from self._source.literal(",", "}")
            if separator == "}":
                return True
        return False

    def _member(self) -> Scan[bool]:
        key = yield from json_string(self._source)
        yield from self._source.space()
        if key is None or not (yield from self._source.literal(":")):
            return False
        yield from self._source.space()
        if key == "name" and not self._name:
            self._name = (yield from json_string(self._source)) or ""
            return bool(self._name)
        if key in ARGUMENT_KEYS and not self._held and not self._started:
            return (yield from self._arguments())
        return (yield from json_value(self._source, _ignore))

    def _arguments(self) -> Scan[bool]:
        if self._name and (yield from self._source.peek()) == "{":
            return self._start() and (yield from json_value(self._source, self._sink.arguments))
        parts: list[str] = []
        whole = yield from json_value(self._source, parts.append)
        self._held = _object_text("".join(parts))
        return whole

    def _start(self) -> bool:
        if not self._name or (self._known_only and self._name not in self._sink.functions.by_name):
            return False
        self._source.release()
        self._sink.start_call(self._name)
        self._started = True
        return True


def json_string(source: Source) -> Scan[str | None]:
    """A JSON string, decoded; None where there is none."""
    if (yield from source.peek()) != '"':
        return None
    parts: list[str] = []
    if not (yield from _string(source, parts.append)):
        return None
    try:
        return str(json.loads("".join(parts)))
    except ValueError:
        return None


def json_value(source: Source, emit: Emit) -> Scan[bool]:
    """Pass on a JSON value as it is written. False where the text ends within it, or where there is none."""
    first = yield from source.peek()
    if first == '"':
        return (yield from _string(source, emit))
    if first in ("{", "["):
        return (yield from _nested(source, emit))
    scalar = yield from source.run(lambda char: char not in ",]}" and not char.isspace())
    emit(scalar)
    return bool(scalar)


def _string(source: Source, emit: Emit) -> Scan[bool]:
    emit((yield from source.take()))
    while char := (yield from source.take()):
        if char == "\\":
            char += yield from source.take()
        emit(json.dumps(char)[1:-1] if char < " " else char)  # a raw line end is no JSON, and models write some
        if char == '"':
            return True
    return False


def _nested(source: Source, emit: Emit) -> Scan[bool]:
    depth = 0
    while char := (yield from source.peek()):
        if char == '"':
            yield from _string(source, emit)
            continue
        emit((yield from source.take()))
        depth += (char in "{[") - (char in "}]")
        if depth == 0:
            return True
    return False


def _object_text(value: str) -> str:
    """Arguments that were not written as an object: as text that holds one, or as null."""
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return "" if value == "null" else value


def _ignore(_: str) -> None:
    """A value that says nothing of the call."""
