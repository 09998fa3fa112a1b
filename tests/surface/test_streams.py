"""A stream says what the whole answer says: with stop strings over tokens, and characters that are many tokens long."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.api import sse_reader
from tests.surface.conftest import Surface

PLAIN = "/v1/completions"
PROMPTS = 10
LETTERS = ["a", "fox ", "é", "🦀", "👨‍👩‍👧", "日本", "naïve", " ", "\n", "Ω"]


def prompts(count: int) -> list[str]:
    chosen = random.Random(5)
    return ["".join(chosen.choices(LETTERS, k=chosen.randrange(1, 12))) for _ in range(count)]


def spelling(text: str) -> dict[str, Any]:
    """A request whose answer is `text`, byte by byte or in whatever tokens the model likes."""
    return {"structured_outputs": {"choice": [text]}, "max_tokens": 200}


async def streamed(surface: Surface, body: dict[str, Any]) -> tuple[list[str], str | None]:
    """The pieces, and why it ended."""
    answer = await surface.post(PLAIN, body | {"stream": True})
    *chunks, done = sse_reader.events(answer.text)
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["text"] for choice in choices], choices[-1]["finish_reason"]


async def whole(surface: Surface, body: dict[str, Any]) -> tuple[str, str]:
    choice = (await surface.post(PLAIN, body)).json()["choices"][0]
    return choice["text"], choice["finish_reason"]


async def test_random_outputs(surface: Surface) -> None:
    """Of random weights: bytes that are no characters, and halves of some."""
    for index, prompt in enumerate(prompts(PROMPTS)):
        body = {"prompt": prompt, "max_tokens": 40, "seed": index, "ignore_eos": True}
        text, finish = await whole(surface, body)
        pieces, ended = await streamed(surface, body)
        assert ("".join(pieces), ended) == (text, finish)
        if len(text) > 4:
            stop = text[len(text) // 2 :][:3]
            stopped, _ = await whole(surface, body | {"stop": stop})
            assert stopped == text[: text.index(stop)]
            assert ("".join((await streamed(surface, body | {"stop": stop}))[0])) == stopped


@pytest.mark.parametrize("text", ["🦀🦀", "👨‍👩‍👧 and 日本語", "naïve café", "a\u2028b\u0085c", "𝔘𝔫𝔦"])
async def test_characters_of_many_tokens_come_whole(surface: Surface, text: str) -> None:
    body = {"prompt": "x"} | spelling(text)
    pieces, finish = await streamed(surface, body)
    assert ("".join(pieces), finish) == (text, "stop")
    assert "\ufffd" not in "".join(pieces)
    assert all(set(piece) <= set(text) for piece in pieces)
    assert await whole(surface, body) == (text, "stop")


@pytest.mark.parametrize("stop", ["🦀", "end of", " the end", "d of t"])
async def test_stop_strings_over_tokens(surface: Surface, stop: str) -> None:
    body = {"prompt": "x", "stop": [stop, "never"]} | spelling("At the 🐌 no end of the end 🦀!")
    expected = "At the 🐌 no end of the end 🦀!".split(stop)[0]
    assert await whole(surface, body) == (expected, "stop")
    pieces, finish = await streamed(surface, body)
    assert ("".join(pieces), finish) == (expected, "stop")
