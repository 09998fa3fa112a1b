"""Reading server-sent events strictly, as bytes."""

from __future__ import annotations

import json
from typing import Any


def events(body: str) -> list[Any]:
    """The events of a stream: decoded JSON, "[DONE]", or a comment's text with its colon."""
    assert body.endswith("\n\n"), "every event ends in a blank line"
    return [_event(block) for block in body[:-2].split("\n\n")]


def _event(block: str) -> Any:
    if block.startswith(":"):
        return block
    assert block.startswith("data: "), block
    data = block.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def texts(chunks: list[Any], choices: int = 1) -> list[str]:
    """The text of each choice over all chunks."""
    found = [""] * choices
    for chunk in chunks:
        for choice in chunk["choices"] if isinstance(chunk, dict) else []:
            found[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return found
