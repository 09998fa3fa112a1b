"""Text that comes in pieces, for parsers that are written as if they had all of it.

A parser is a generator that yields where it needs more text. It never sees how the text was cut, so what it has said
after some text depends on that text alone: this is what lets another worker take over in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")

Scan = Generator[None, None, T]
"""Yields where more text is needed; returns T."""
Emit = Callable[[str], None]


class Source:
    """The text still to be read. From `mark` on nothing is forgotten until `release` or `since_mark`."""

    __slots__ = ("_buffer", "_ended", "_mark", "_position")

    def __init__(self) -> None:
        self._buffer = ""
        self._position = 0
        self._mark: int | None = None
        self._ended = False

    def feed(self, text: str) -> None:
        start = self._position if self._mark is None else self._mark
        self._buffer = self._buffer[start:] + text
        self._position -= start
        if self._mark is not None:
            self._mark = 0

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def mark(self) -> None:
        """What is read from here on may turn out to be plain text."""
        self._mark = self._position

    def release(self) -> None:
        """It did not."""
        self._mark = None

    def since_mark(self) -> str:
        """What was read since the mark, which is then gone."""
        text = "" if self._mark is None else self._buffer[self._mark : self._position]
        self._mark = None
        return text

    def peek(self) -> Scan[str]:
        """The next character; empty at the end."""
        while self._position == len(self._buffer):
            if self._ended:
                return ""
            yield
        return self._buffer[self._position]

    def take(self) -> Scan[str]:
        """The next character, read; empty at the end."""
        char = yield from self.peek()
        self._position += len(char)
        return char

    def run(self, accepts: Callable[[str], bool]) -> Scan[str]:
        """As many characters as are accepted."""
        chars: list[str] = []
        while (char := (yield from self.peek())) and accepts(char):
            self._position += 1
            chars.append(char)
        return "".join(chars)

    def space(self) -> Scan[None]:
        """Skip white space."""
        yield from self.run(str.isspace)

    def name(self) -> Scan[str]:
        """A function's or a parameter's name; empty where none stands."""
        return (yield from self.run(lambda char: char.isalnum() or char in "_-."))

    def literal(self, *words: str) -> Scan[str]:
        """Read whichever of `words` comes next; empty, and nothing read, where none does. None begins another."""
        while True:
            rest = self._buffer[self._position :]
            for word in words:
                if rest.startswith(word):
                    self._position += len(word)
                    return word
            if self._ended or not any(word.startswith(rest) for word in words):
                return ""
            yield

    def until(self, emit: Emit, *words: str) -> Scan[str]:
        """Pass on text up to the first of `words`, which is named and not read; all of it where none comes."""
        while True:
            rest = self._buffer[self._position :]
            found = min(((at, word) for word in words if (at := rest.find(word)) >= 0), default=None)
            keep = found[0] if found else len(rest) if self._ended else _hold_from(rest, words)
            self._position += keep
            if keep:
                emit(rest[:keep])
            if found or self._ended:
                return found[1] if found else ""
            yield


def _hold_from(text: str, words: Sequence[str]) -> int:
    """Where the longest end of the text starts that is the beginning of one of `words`."""
    keep = len(text)
    for word in words:
        for size in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:size]):
                keep = min(keep, len(text) - size)
                break
    return keep
