"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen models write it, and the XML of the
Qwen coder models: `<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>`."""

from __future__ import annotations

import json

from workers.front.tools.json_call import json_call
from workers.front.tools.sink import Sink
from workers.front.tools.source import Emit, Scan, Source

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
_WORDS = {"True": True, "False": False, "None": None}


def hermes(source: Source, sink: Sink) -> Scan[None]:
    while (yield from source.until(sink.text, OPENING)):
        source.mark()
        yield from source.literal(OPENING)
        yield from source.space()
        yield from _finish(source, sink, called=(yield from json_call(source, sink)))


def qwen3(source: Source, sink: Sink) -> Scan[None]:
    """Both forms; a coder model sometimes leaves the outer tag out."""
    while (yield from source.until(sink.text, OPENING, FUNCTION)):
        source.mark()
        yield from source.literal(OPENING)
        yield from source.space()
        read = json_call if (yield from source.peek()) == "{" else _xml_call
        yield from _finish(source, sink, called=(yield from read(source, sink)))


def _finish(source: Source, sink: Sink, *, called: bool) -> Scan[None]:
    """What was no call is text."""
    if not called:
        sink.text(source.since_mark())
        return
    yield from source.space()
    yield from source.literal(CLOSING)


def _xml_call(source: Source, sink: Sink) -> Scan[bool]:
    if not (yield from source.literal(FUNCTION)):
        return False
    name = yield from source.name()
    if not name or not (yield from source.literal(">")):
        return False
    source.release()
    sink.start_call(name)
    sink.arguments("{")
    yield from _parameters(source, sink, name)
    sink.end_call()
    return True


def _parameters(source: Source, sink: Sink, function: str) -> Scan[None]:
    separator = ""
    while True:
        yield from source.space()
        tag = yield from source.literal(PARAMETER, END_FUNCTION)
        if tag != PARAMETER:
            if tag or (yield from source.peek()):  # else the text was cut off, and so are the arguments
                sink.arguments("}")
            return
        key = yield from source.name()
        yield from source.literal(">")
        sink.arguments(f"{separator}{json.dumps(key)}: ")
        separator = ", "
        yield from _value(source, sink, as_text=sink.functions.is_text(function, key))


def _value(source: Source, sink: Sink, *, as_text: bool) -> Scan[None]:
    """One line end on each side of a value belongs to the tags."""
    yield from source.literal("\n")
    if as_text:
        sink.arguments('"')
        if (yield from _up_to_end(source, lambda text: sink.arguments(_escaped(text)))):
            sink.arguments('"')
        return
    parts: list[str] = []
    if (yield from _up_to_end(source, parts.append)):
        sink.arguments(_typed("".join(parts)))


def _up_to_end(source: Source, emit: Emit) -> Scan[bool]:
    found = yield from source.until(emit, "\n" + END_PARAMETER, END_PARAMETER)
    return bool((yield from source.literal(found))) if found else False


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _typed(text: str) -> str:
    """A value that is not declared as a string: JSON if it can be read as such, else a string after all."""
    if text.strip() in _WORDS:
        return json.dumps(_WORDS[text.strip()])
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()
