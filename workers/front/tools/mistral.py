"""`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`, and `[TOOL_CALLS]name[ARGS]{...}` of the later models."""

from __future__ import annotations

from workers.front.tools.json_call import json_call, json_value
from workers.front.tools.sink import Sink
from workers.front.tools.source import Scan, Source

OPENING, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


def mistral(source: Source, sink: Sink) -> Scan[None]:
    while (yield from source.until(sink.text, OPENING)):
        source.mark()
        yield from source.literal(OPENING)
        yield from source.space()
        if not (yield from _calls(source, sink)):
            sink.text(source.since_mark())


def _calls(source: Source, sink: Sink) -> Scan[bool]:
    first = yield from source.peek()
    if first == "{":
        return (yield from json_call(source, sink))
    return (yield from _list(source, sink) if first == "[" else _named(source, sink))


def _list(source: Source, sink: Sink) -> Scan[bool]:
    called, separator = False, (yield from source.literal("["))
    while separator in ("[", ","):
        yield from source.space()
        if not (yield from json_call(source, sink)):
            return called
        called = True
        yield from source.space()
        separator = yield from source.literal(",", "]")
    return called


def _named(source: Source, sink: Sink) -> Scan[bool]:
    name = yield from source.name()
    if (yield from source.literal(CALL_ID)):
        yield from source.name()  # ids are our own
    yield from source.literal(ARGUMENTS)
    yield from source.space()
    if not name or (yield from source.peek()) != "{":
        return False
    source.release()
    sink.start_call(name)
    yield from json_value(source, sink.arguments)
    sink.end_call()
    return True
