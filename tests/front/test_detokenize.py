"""Incremental text equals the decoding of all tokens at once, and never shows half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.front import tokenizers
from workers.front.detokenize import MAX_HELD_TOKENS, ByteDetokenizer, PrefixDetokenizer, Vocabulary

BYTE_LEVEL = tokenizers.byte_level()
SENTENCEPIECE = tokenizers.sentencepiece()


def pieces(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = (), *, skip: bool = True) -> list[str]:
    detokenizer = Vocabulary(tokenizer).detokenizer(prompt, skip_special_tokens=skip)
    return [*(detokenizer.step(token_id) for token_id in ids), detokenizer.flush()]


@given(st.lists(st.integers(0, len(BYTE_LEVEL) + 3)), st.booleans())
def test_byte_level_equals_decoding_at_once(ids: list[int], skip: bool) -> None:
    whole = BYTE_LEVEL.backend_tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(BYTE_LEVEL, ids, skip=skip)) == whole


@given(st.text())
def test_text_survives_tokens(text: str) -> None:
    ids = BYTE_LEVEL.backend_tokenizer.encode(text).ids
    shown = pieces(BYTE_LEVEL, ids, skip=False)
    assert "".join(shown) == text


def test_emoji_over_several_tokens_comes_whole() -> None:
    ids = BYTE_LEVEL.backend_tokenizer.encode("🦀").ids
    assert len(ids) > 2
    assert pieces(BYTE_LEVEL, ids) == [*[""] * (len(ids) - 1), "🦀", ""]


def test_unfinished_character_at_the_end_is_replaced() -> None:
    ids = BYTE_LEVEL.backend_tokenizer.encode("🦀").ids[:2]
    assert pieces(BYTE_LEVEL, ids) == ["", "", "\ufffd"]


def test_invalid_bytes_are_not_held_back_for_ever() -> None:
    lead = BYTE_LEVEL.backend_tokenizer.encode("🦀").ids[0]
    shown = pieces(BYTE_LEVEL, [lead] * 50)
    assert "".join(shown[:-1]) == "\ufffd" * 49


def test_special_tokens_are_hidden_or_shown() -> None:
    end = BYTE_LEVEL.eos_token_id
    tag = BYTE_LEVEL.convert_tokens_to_ids("<|tag|>")
    assert "".join(pieces(BYTE_LEVEL, [end, tag])) == "<|tag|>"
    assert "".join(pieces(BYTE_LEVEL, [end, tag], skip=False)) == "<|end|><|tag|>"


def test_added_token_outside_of_the_byte_alphabet() -> None:
    added = BYTE_LEVEL.convert_tokens_to_ids("añ b")
    assert "".join(pieces(BYTE_LEVEL, [added])) == "añ b"


def sp(*names: str) -> list[int]:
    return SENTENCEPIECE.convert_tokens_to_ids(list(names))


def test_sentencepiece_text_continues_its_prompt() -> None:
    assert pieces(SENTENCEPIECE, sp("▁hello", "▁a", "b"), prompt=sp("a")) == [" hello", " a", "b", ""]


@pytest.mark.parametrize("prompt", [[], ["<s>"]])
def test_sentencepiece_after_no_text_drops_the_first_space(prompt: list[str]) -> None:
    ids = sp("▁hello", "▁a")
    assert "".join(pieces(SENTENCEPIECE, ids, prompt=sp(*prompt))) == SENTENCEPIECE.backend_tokenizer.decode(ids)


def test_without_strip_the_first_space_stays() -> None:
    tokenizer = tokenizers.sentencepiece(strip=False)
    assert "".join(pieces(tokenizer, sp("▁hello"))) == tokenizer.backend_tokenizer.decode(sp("▁hello")) == " hello"


def test_byte_fallback_makes_characters() -> None:
    euro = sp("<0xE2>", "<0x82>", "<0xAC>")
    assert pieces(SENTENCEPIECE, [*sp("a"), *euro, *sp("b")], prompt=sp("a")) == ["a", "", "", "€", "b", ""]


def test_invalid_byte_fallback_raises_nothing() -> None:
    shown = pieces(SENTENCEPIECE, sp("a", "<0xE2>", "<0x82>", "<0xFF>", "b"), prompt=sp("a"))
    assert "".join(shown) == "a\ufffd\ufffdb"


def test_other_decoders_use_a_window() -> None:
    tokenizer = tokenizers.wordpiece()
    ids = tokenizer.convert_tokens_to_ids(["hello", "good", "##ly", "world"])
    vocabulary = Vocabulary(tokenizer)
    assert isinstance(vocabulary.detokenizer([], skip_special_tokens=True), PrefixDetokenizer)
    assert isinstance(Vocabulary(BYTE_LEVEL).detokenizer([], skip_special_tokens=True), ByteDetokenizer)
    assert pieces(tokenizer, ids) == ["hello", " good", "ly", " world", ""]
    assert vocabulary.token_bytes(ids[0]) == b"hello"


@given(st.lists(st.integers(1, 262), max_size=30))
def test_window_equals_decoding_at_once_on_valid_text(ids: list[int]) -> None:
    def decode(window: list[int]) -> str:
        return str(BYTE_LEVEL.backend_tokenizer.decode(window))

    whole = decode(ids)
    detokenizer = PrefixDetokenizer(decode)
    shown = "".join([*(detokenizer.step(token_id) for token_id in ids), detokenizer.flush()])
    if "\ufffd" not in whole:
        assert shown == whole


def test_window_holds_back_boundedly() -> None:
    detokenizer = PrefixDetokenizer(lambda ids: "\ufffd" * len(ids))
    shown = [detokenizer.step(0) for _ in range(MAX_HELD_TOKENS + 1)]
    assert shown == [*[""] * (MAX_HELD_TOKENS - 1), "\ufffd" * MAX_HELD_TOKENS, ""]


def test_token_bytes_of_part_of_a_character() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    ids = BYTE_LEVEL.backend_tokenizer.encode("🦀").ids
    assert b"".join(vocabulary.token_bytes(token_id) for token_id in ids) == "🦀".encode()
    assert vocabulary.token_bytes(BYTE_LEVEL.eos_token_id) == b"<|end|>"
