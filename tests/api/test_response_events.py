"""The events of a response follow from its text alone, however it comes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.response_api.body import response_body
from api.response_api.events import EventWriter
from api.response_api.pieces import LONGEST, Pieces
from api.store import ResponseRecord
from schemas.messages import Choice, Delta, ErrorInfo, Outcome, Result, Usage
from schemas.openai.responses import ResponseObject

REQUEST: dict[str, Any] = {
    "model": "m",
    "instructions": None,
    "max_output_tokens": None,
    "user": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "metadata": {},
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "background": True,
    "store": True,
}
RECORD = ResponseRecord("resp_j", "me", "j", None, REQUEST, [], 1.0, 2.0)
TEXTS = st.text(st.sampled_from("ab1 \n\t.,é漢🙂\u2028\x85")) | st.text()


def cut(text: str, cuts: list[int]) -> list[str]:
    """The text in parts, cut at these places."""
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[first:last] for first, last in pairwise(places)]


def pieces_of(parts: list[str]) -> list[str]:
    pieces = Pieces()
    return [piece for part in parts for piece in pieces.feed(part)] + pieces.end()


def result(text: str, outcome: Outcome = "completed", error: ErrorInfo | None = None) -> Result:
    choices = [Choice(index=0, text=text, token_ids=[1], finish_reason="stop")] if outcome == "completed" else []
    usage = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1)
    return Result(job="j", model="m", outcome=outcome, choices=choices, usage=usage, error=error, finished=5.5)


def stream(parts: list[str], end: Result, after: int = -1) -> bytes:
    writer = EventWriter(RECORD, after)
    body = writer.opening()
    for part in parts:
        body += writer.delta(Delta(job="j", epoch=0, offset=0, text=part))
    return body + writer.end(end)


def decoded(body: bytes) -> list[Any]:
    """The events, read by a reader that splits lines as Unicode does."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        kind, data = block.splitlines()
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    return events


@given(TEXTS, st.lists(st.integers(0, 100), max_size=6))
def test_pieces_do_not_depend_on_how_the_text_comes(text: str, cuts: list[int]) -> None:
    pieces = pieces_of(cut(text, cuts))
    assert "".join(pieces) == text
    assert pieces == pieces_of([text]) == pieces_of(list(text))
    assert all(0 < len(piece) <= 2 * LONGEST for piece in pieces)


@given(TEXTS)
def test_no_more_than_a_growing_word_is_held_back(text: str) -> None:
    pieces, shown = Pieces(), ""
    for end, char in enumerate(text, 1):
        shown += "".join(pieces.feed(char))
        held = text[len(shown) : end]
        assert text.startswith(shown)
        assert len(held) < 2 * LONGEST
        assert held.strip() == "" or held.strip().isalnum()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("a  b\n\n  c", ["a", "  b", "\n\n  c"]),
        ("né 漢字🙂", ["n", "é", " 漢", "字", "🙂"]),
        ("x" * 40, ["x" * 16, "x" * 16, "x" * 8]),
        (" " * 20 + "x", [" " * 16, " " * 4 + "x"]),
        ("", []),
    ],
)
def test_pieces(text: str, pieces: list[str]) -> None:
    assert pieces_of([text]) == pieces


@given(TEXTS, st.lists(st.integers(0, 100), max_size=4), st.integers(-1, 60))
def test_a_stream_goes_on_behind_any_number(text: str, cuts: list[int], after: int) -> None:
    whole = decoded(stream(list(text), result(text)))
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert "".join(event["delta"] for event in whole if event["type"] == "response.output_text.delta") == text
    assert whole[-1]["response"] == response_body(RECORD, result(text))
    assert decoded(stream(cut(text, cuts), result(text), after)) == whole[after + 1 :]


@pytest.mark.parametrize(
    ("outcome", "error", "status", "code"),
    [
        ("failed", ErrorInfo(message="no", code="context_length_exceeded"), "failed", "invalid_prompt"),
        ("failed", ErrorInfo(message="no", type="server_error", status=500), "failed", "server_error"),
        ("failed", None, "failed", "server_error"),
        ("expired", None, "failed", "server_error"),
        ("cancelled", None, "cancelled", None),
    ],
)
@pytest.mark.parametrize("after", [-1, 3, 50])
def test_every_end_reaches_a_reader_wherever_it_stands(
    outcome: Outcome, error: ErrorInfo | None, status: str, code: str | None, after: int
) -> None:
    *_, last = decoded(stream(["a b "] if after < 0 else [], result("", outcome, error), after))
    assert last["sequence_number"] > after
    assert last["response"]["status"] == status
    assert (last["response"]["error"] or {}).get("code") == code
    ResponseObject.model_validate(last["response"])
