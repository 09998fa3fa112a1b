"""Where the text of a response is cut into deltas: at places that follow from the text alone.

However the text comes, token by token, in one piece from the store, or in other pieces from a second worker, the deltas
are the same, and so are the sequence numbers that count them. A piece is white space and then a word, or a character that
is none; a word still growing is held back until it ends, which costs a stream one token's time.
"""

from __future__ import annotations

import re

LONGEST = 16
_PIECE = re.compile(rf"\s{{0,{LONGEST}}}(?:[0-9A-Za-z]{{1,{LONGEST}}}|\S)|\s{{1,{LONGEST}}}")
_ENDED = re.compile(rf"\s*(?:[0-9A-Za-z]{{{LONGEST}}}|[^\s0-9A-Za-z])")


class Pieces:
    """Cuts a text while it comes."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """The pieces that `text` completes."""
        pieces = _PIECE.findall(self._held + text)
        self._held = "" if not pieces or _ENDED.fullmatch(pieces[-1]) else pieces.pop()
        return pieces

    def end(self) -> list[str]:
        """The last piece, now that nothing follows."""
        held, self._held = self._held, ""
        return [held] if held else []
