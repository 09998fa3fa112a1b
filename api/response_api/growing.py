"""The items of an output whose text comes bit by bit: the reasoning, and the message behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.response_api.items import reasoning_part, text_part
from api.response_api.pieces import Pieces


@dataclass(frozen=True, slots=True)
class Form:
    """How one kind of item is told: its events, its one part, and what its events have beside the text."""

    events: str
    part: Callable[[str], dict[str, Any]]
    beside: dict[str, Any]


MESSAGE = Form("response.output_text", text_part, {"logprobs": []})
REASONING = Form("response.reasoning_text", reasoning_part, {})


class GrowingItem:
    """Written by `event`, which numbers; `index` is its place in the output."""

    def __init__(self, event: Callable[..., bytes], form: Form, index: int, beginning: dict[str, Any]) -> None:
        self._event = event
        self._form = form
        self._index = index
        self._beginning = beginning
        self._place = {"item_id": beginning["id"], "output_index": index, "content_index": 0}
        self._pieces = Pieces()
        self._is_open = False
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(self._parts)

    def feed(self, text: str) -> bytes:
        """The deltas that new text completes."""
        self._parts.append(text)
        return self._open() + self._deltas(self._pieces.feed(text))

    def _open(self) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        added = self._event("response.output_item.added", output_index=self._index, item=self._beginning)
        return added + self._event("response.content_part.added", **self._place, part=self._form.part(""))

    def end(self, item: dict[str, Any]) -> bytes:
        """The last delta, and the whole."""
        text = self.text
        return b"".join(
            (
                self._open(),
                self._deltas(self._pieces.end()),
                self._event(f"{self._form.events}.done", **self._place, text=text, **self._form.beside),
                self._event("response.content_part.done", **self._place, part=self._form.part(text)),
                self._event("response.output_item.done", output_index=self._index, item=item),
            )
        )

    def _deltas(self, pieces: list[str]) -> bytes:
        kind = f"{self._form.events}.delta"
        return b"".join(self._event(kind, **self._place, delta=piece, **self._form.beside) for piece in pieces)
