"""Stop strings across token boundaries.

The text ends at the first place where any stop string is complete; of those complete at the same place, the longest
counts. So where it ends depends on the text alone, not on how tokens cut it. Whatever could begin a stop string is held
back until it does or does not. Tokens are not cut: the ids reported for a choice include all those of the matched stop
string, though its text is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Filters the text of one choice. `matched` is the stop string that ended it; after that nothing may be fed."""

    __slots__ = ("_held", "_include", "_stops", "matched")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str, *, check: bool = True) -> str:
        """Take new text, return what may be shown. Without `check` no stop string ends in it (min_tokens)."""
        if not text:
            return ""
        buffer = self._held + text
        if check and (end := self._match(buffer)):
            return buffer[:end] if self._include else buffer[: end - len(self.matched or "")]
        keep = self._hold_from(buffer)
        self._held = buffer[keep:]
        return buffer[:keep]

    def flush(self) -> str:
        """What is held back; the text ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _match(self, buffer: str) -> int:
        """Where the first stop string ends that is complete in the new part of the buffer; sets `matched`. 0: none."""
        first = 0
        for stop in self._stops:
            start = buffer.find(stop, max(0, len(self._held) - len(stop) + 1))
            end = start + len(stop)
            if start >= 0 and (not first or end < first or (end == first and len(stop) > len(self.matched or ""))):
                first, self.matched = end, stop
        return first

    def _hold_from(self, buffer: str) -> int:
        """Where the longest end of the buffer starts that is the beginning of a stop string."""
        keep = len(buffer)
        for stop in self._stops:
            start = buffer.find(stop[0], max(0, len(buffer) - len(stop) + 1))
            while 0 <= start < keep:
                if stop.startswith(buffer[start:]):
                    keep = start
                else:
                    start = buffer.find(stop[0], start + 1)
        return keep
