"""`[name(key="value", other=3), ...]` as the whole answer, as Llama 4 writes it, between `<|python_start|>` and
`<|python_end|>` at times. A list that calls no known function is text."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable

from workers.front.tools.sink import Sink
from workers.front.tools.source import Scan, Source

OPENING, CLOSING = "<|python_start|>", "<|python_end|>"
_JSON_WORDS = {"true", "false", "null"}


def pythonic(source: Source, sink: Sink) -> Scan[None]:
    yield from _list(source, sink)
    while (yield from source.until(sink.text, OPENING)):
        yield from _list(source, sink)


def _list(source: Source, sink: Sink) -> Scan[None]:
    source.mark()
    yield from source.space()
    yield from source.literal(OPENING)
    yield from source.space()
    separator = yield from source.literal("[")
    while separator in ("[", ","):
        yield from source.space()
        if not (yield from _call(source, sink)):
            break
        source.mark()
        yield from source.space()
        separator = yield from source.literal(",", "]")
    if separator == "]":
        source.release()
        yield from source.space()
        yield from source.literal(CLOSING)
    else:
        sink.text(source.since_mark())


def _call(source: Source, sink: Sink) -> Scan[bool]:
    """Without a known name there is no call; from then on it is one, whatever follows."""
    name = yield from source.name()
    if name not in sink.functions.by_name or not (yield from source.literal("(")):
        return False
    source.release()
    sink.start_call(name)
    sink.arguments("{")
    if (yield from _arguments(source, sink)):
        sink.arguments("}")
    sink.end_call()
    return True


def _arguments(source: Source, sink: Sink) -> Scan[bool]:
    """False where the text ends within them, or where they are not written as key=value."""
    lead = ""
    while True:
        yield from source.space()
        if (yield from source.literal(")")):
            return True
        key = yield from source.name()
        yield from source.space()
        if not key or not (yield from source.literal("=")):
            return False
        value = yield from _expression(source)
        if not (end := (yield from source.literal(",", ")"))):
            return False
        sink.arguments(f"{lead}{json.dumps(key)}: {_json(value)}")
        if end == ")":
            return True
        lead = ", "


def _expression(source: Source) -> Scan[str]:
    """Source text up to the comma or parenthesis that ends it."""
    parts: list[str] = []
    depth = 0
    while char := (yield from source.peek()):
        if depth == 0 and char in ",)":
            break
        parts.append((yield from source.take()))
        if char in "\"'":
            yield from _string(source, char, parts.append)
        depth += (char in "([{") - (char in ")]}")
    return "".join(parts).strip()


def _string(source: Source, quote: str, emit: Callable[[str], None]) -> Scan[None]:
    while char := (yield from source.take()):
        emit(char)
        if char == "\\":
            emit((yield from source.take()))
        elif char == quote:
            return


def _json(expression: str) -> str:
    """A Python literal as JSON; what is none is told as the text it is."""
    if expression in _JSON_WORDS:
        return expression
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's string may hold an escape that Python does not know
            value = ast.literal_eval(expression)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return json.dumps(expression, ensure_ascii=False)
