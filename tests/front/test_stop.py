"""Stop strings end the text where the text says so, however it is cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.front.stop import StopStrings

ALPHABET = "ab c"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


def first_end(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(where the text is cut, where the stop string ends), by trying every end in turn."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end - max(map(len, complete)), end
    return None


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@settings(max_examples=500)
@given(st.text(ALPHABET, max_size=40), STOPS, st.lists(st.integers(0, 100)), st.booleans())
def test_streamed_text_is_the_truncated_text(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    filtered = StopStrings(stops, include=include)
    shown = ""
    for piece in cut(text, cuts):
        shown += filtered.feed(piece)
        assert filtered.matched is not None or not any(stop in shown for stop in stops)
        if filtered.matched is not None:
            break
    shown += "" if filtered.matched is not None else filtered.flush()
    expected = first_end(text, stops)
    if expected is None:
        assert (filtered.matched, shown) == (None, text)
    else:
        assert shown == text[: expected[1] if include else expected[0]]
        assert filtered.matched == text[slice(*expected)]


@given(st.text(ALPHABET, max_size=40), STOPS)
def test_what_cannot_begin_a_stop_string_is_shown_at_once(text: str, stops: list[str]) -> None:
    filtered = StopStrings(stops)
    shown = ""
    for position, letter in enumerate(text):
        shown += filtered.feed(letter)
        if filtered.matched is not None:
            return
        held = text[len(shown) : position + 1]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_over_three_pieces() -> None:
    filtered = StopStrings(["END"])
    assert [filtered.feed(piece) for piece in ("the E", "N", "D of it")] == ["the ", "", ""]
    assert filtered.matched == "END"


def test_a_false_alarm_is_shown_late_but_whole() -> None:
    filtered = StopStrings(["aab"])
    assert [filtered.feed(piece) for piece in "aaac"] == ["", "", "a", "aac"]


def test_unchecked_text_cannot_stop_but_may_begin_a_stop_string() -> None:
    filtered = StopStrings(["END"])
    assert filtered.feed("END E", check=False) == "END "
    assert filtered.feed("ND") == ""
    assert filtered.matched == "END"


def test_what_was_complete_before_checking_does_not_stop_later() -> None:
    filtered = StopStrings(["bc", "abcd"])
    assert filtered.feed("abc", check=False) == ""
    assert filtered.feed("x") == "abcx"
    assert filtered.matched is None


def test_a_very_long_stop_string_costs_memory_once() -> None:
    stop = "a" * 100_000 + "b"
    filtered = StopStrings([stop])
    assert filtered.feed("a" * 100_000) == ""
    assert filtered.feed("b") == ""
    assert filtered.matched == stop
