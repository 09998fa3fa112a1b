"""`<think>...</think>` in front of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workers.front.tools.sink import Sink
from workers.front.tools.source import Scan, Source

OPENING, CLOSING = "<think>", "</think>"

PromptEnd = Literal["open", "closed", "none"]
"""Whether the prompt has begun the reasoning for the model, has ended it (thinking is off), or says nothing of it."""


@dataclass(frozen=True, slots=True)
class ReasoningStyle:
    """`implied`: an answer begins with reasoning, whether or not its tag is written."""

    implied: bool = False


def prompt_end(tail: str) -> PromptEnd:
    """From the last characters of a prompt."""
    tail = tail.rstrip()
    return "open" if tail.endswith(OPENING) else "closed" if tail.endswith(CLOSING) else "none"


def reasoning(source: Source, sink: Sink, style: ReasoningStyle, prompt: PromptEnd) -> Scan[None]:
    """Read up to where the answer begins."""
    if prompt == "closed":
        return
    sink.in_reasoning = style.implied or prompt == "open"
    source.mark()
    yield from source.space()
    if not (yield from source.literal(OPENING)) and not sink.in_reasoning:
        sink.text(source.since_mark())
        return
    source.release()
    sink.in_reasoning = True
    if (yield from source.until(sink.reasoning, CLOSING)):
        yield from source.literal(CLOSING)
        sink.end_reasoning()
