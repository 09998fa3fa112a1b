"""Where parsers put what they read: reasoning, text, and tool calls piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from schemas.messages import ToolCall


class Piece(Struct, frozen=True):
    """What may be shown of a choice: the part that is new, or all of it."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions that may be called, by name, each with its parameters' JSON schemas by name."""

    by_name: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_text(self, function: str, parameter: str) -> bool:
        """Whether the parameter is declared to be a string."""
        schema = self.by_name.get(function, {}).get(parameter)
        return isinstance(schema, dict) and schema.get("type") == "string"


@dataclass(frozen=True, slots=True)
class CallIds:
    """Ids of one choice's calls: the same on every worker that has the job. `length` counts characters in all."""

    job: str
    choice: int
    prefix: str = "call_"
    length: int = 29

    def of(self, index: int) -> str:
        digest = hashlib.blake2b(f"{self.job}/{self.choice}/{index}".encode()).hexdigest()
        return (self.prefix + digest)[: self.length]


class Sink:
    """Collects what was read; `take` gives what is new. White space around calls and reasoning is nobody's text."""

    def __init__(self, functions: Functions, ids: CallIds, *, parallel: bool = True) -> None:
        self.functions = functions
        self.in_reasoning = False
        self.done = False
        """The one call that was allowed is complete; nothing is taken any more."""
        self._ids = ids
        self._parallel = parallel
        self._text = _Prose()
        self._reasoning = _Prose(strip=True)
        self._calls: list[list[str]] = []
        self._names: list[str] = []
        self._new: list[ToolCall] = []

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    @property
    def whole(self) -> Piece:
        """All that was said so far, the text excepted: its reader keeps it."""
        return Piece("", self._reasoning.whole, [self._call(index) for index in range(len(self._calls))])

    def text(self, text: str) -> None:
        if not self.done:
            self._text.add(text)

    def reasoning(self, text: str) -> None:
        self._reasoning.add(text)

    def end_reasoning(self) -> None:
        """The answer begins."""
        self.in_reasoning = False
        self._text = _Prose(strip=True)

    def start_call(self, name: str) -> None:
        if not self.done:
            index = len(self._calls)
            self._text.drop_space()
            self._names.append(name)
            self._calls.append([])
            self._new.append(ToolCall(index=index, id=self._ids.of(index), name=name))

    def arguments(self, text: str) -> None:
        """More of the last call's arguments, as JSON text."""
        if not self.done and text:
            self._calls[-1].append(text)
            self._new.append(ToolCall(index=len(self._calls) - 1, arguments=text))

    def end_call(self) -> None:
        self.done = not self._parallel

    def end(self) -> None:
        """The text has ended: white space that was held back belongs to it, unless it stands behind calls."""
        if not self._calls:
            self._text.keep_space()

    def take(self) -> Piece:
        """What is new since the last time."""
        calls, self._new = self._new, []
        return Piece(self._text.take(), self._reasoning.take(), _merged(calls))

    def _call(self, index: int) -> ToolCall:
        arguments = "".join(self._calls[index])
        return ToolCall(index=index, id=self._ids.of(index), name=self._names[index], arguments=arguments)


class _Prose:
    """Text whose white space at the end is held back until something follows it; with `strip` none leads."""

    __slots__ = ("_new", "_parts", "_space", "_strip")

    def __init__(self, *, strip: bool = False) -> None:
        self._strip = strip
        self._space = ""
        self._new: list[str] = []
        self._parts: list[str] = []

    @property
    def whole(self) -> str:
        return "".join([*self._parts, *self._new])

    def add(self, text: str) -> None:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        shown = (self._space + text).rstrip()
        self._space = (self._space + text)[len(shown) :]
        if shown:
            self._new.append(shown)

    def drop_space(self) -> None:
        self._space = ""

    def keep_space(self) -> None:
        self._new.append(self._space)
        self._space = ""

    def take(self) -> str:
        text = "".join(self._new)
        if text:
            self._parts.append(text)
        self._new = []
        return text


def _merged(pieces: Sequence[ToolCall]) -> list[ToolCall]:
    """The pieces with those of one call in one."""
    merged: list[ToolCall] = []
    for piece in pieces:
        if merged and merged[-1].index == piece.index:
            last = merged.pop()
            arguments = last.arguments + piece.arguments
            piece = ToolCall(index=last.index, id=last.id, name=last.name, arguments=arguments)
        merged.append(piece)
    return merged


def since(now: Piece, before: Piece) -> Piece:
    """What was said between two times, given all that was said by then."""
    known = [len(call.arguments) for call in before.tool_calls]
    calls = now.tool_calls[len(known) :]
    grown = [
        ToolCall(index=call.index, arguments=call.arguments[size:])
        for call, size in zip(now.tool_calls, known, strict=False)
        if len(call.arguments) > size
    ]
    return Piece(now.text[len(before.text) :], now.reasoning[len(before.reasoning) :], grown + calls)
