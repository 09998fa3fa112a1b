"""Inputs of embedding jobs as token ids: truncation, limits, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from schemas.messages import EmbeddingParams, ErrorInfo, Job
from tests.embeddings.folders import byte_tokenizer, word_tokenizer
from workers.front import inputs as module
from workers.front.inputs import InputTokenizer, check_kind
from workers.front.limits import InvalidJobError, Limits

LIMITS = Limits(max_model_len=10, vocab_size=90, embedding_dimensions=64)
CLS, SEP, END = 2, 3, 256


class SlowTokenizer:
    """A tokenizer without a backend."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self._inner = inner

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._inner.encode(text, **options)


async def prepared(job_inputs: list[str | list[int]], tokenizer: Any = None, **fields: Any) -> list[list[int]]:
    limits = fields.pop("limits", LIMITS)
    job = Job(id="j", model="m", inputs=job_inputs, **fields)
    return await InputTokenizer(tokenizer or word_tokenizer()).prepare(job, limits)


async def refused(job_inputs: list[str | list[int]], **fields: Any) -> ErrorInfo:
    with pytest.raises(InvalidJobError) as refusal:
        await prepared(job_inputs, **fields)
    return refusal.value.error


@pytest.mark.parametrize("characters", [0, 10**9], ids=["in a thread", "at once"])
async def test_texts_and_ids(monkeypatch: pytest.MonkeyPatch, characters: int) -> None:
    monkeypatch.setattr(module, "MANY_CHARACTERS", characters)
    words = word_tokenizer()
    assert await prepared(["the lazy dog", [5, 6]]) == [words("the lazy dog")["input_ids"], [5, 6]]
    bare = words("the lazy dog", add_special_tokens=False)["input_ids"]
    assert await prepared(["the lazy dog"], add_special_tokens=False) == [bare]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("keep", "left"), [(4, 2), (3, 1), (-1, 8), (99, 8)])
async def test_truncation_keeps_the_beginning_and_the_special_tokens(keep: int, left: int, slow: bool) -> None:
    words = word_tokenizer()
    tokenizer: Any = SlowTokenizer(words) if slow else words
    text = "the quick brown fox jumps over the lazy dog and then some"
    bare = words(text, add_special_tokens=False)["input_ids"]
    assert await prepared([text], tokenizer, truncate_prompt_tokens=keep) == [[CLS, *bare[:left], SEP]]


async def test_truncation_of_ids_and_of_texts_with_a_token_at_the_end() -> None:
    assert await prepared([[5, 6, 7]], truncate_prompt_tokens=2) == [[5, 6]]
    limits = Limits(max_model_len=10, vocab_size=257, embedding_dimensions=64)
    (ids,) = await prepared(["a" * 50], byte_tokenizer(), truncate_prompt_tokens=-1, limits=limits)
    assert (len(ids), ids[-1]) == (10, END)
    assert END not in ids[:-1]
    (bare,) = await prepared(
        ["a" * 50], byte_tokenizer(), truncate_prompt_tokens=3, add_special_tokens=False, limits=limits
    )
    assert (len(bare), END in bare) == (3, False)


async def test_refusals() -> None:
    long = await refused(["water", "the quick brown fox jumps over lazy dog and then"])
    assert (long.param, long.code, long.status) == ("input", "context_length_exceeded", 400)
    assert "10 tokens; input 1 has 12" in long.message
    blank = await refused([" "], add_special_tokens=False)
    assert (blank.param, blank.code) == ("input", "invalid_value")
    unknown = await refused([[90]])
    assert (unknown.param, unknown.code) == ("input", "unknown_token_id")
    wide = await refused(["water"], embedding=EmbeddingParams(dimensions=65))
    assert (wide.param, wide.code) == ("dimensions", "invalid_value")
    assert await prepared(["water"], embedding=EmbeddingParams(dimensions=64))


async def test_more_vectors_than_a_message_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VECTOR_BYTES", 4 * 64 * 2)
    many = await refused(["water"] * 3)
    assert (many.param, many.code) == ("input", "too_many_inputs")
    assert await prepared(["water"] * 2)
    assert await prepared(["water"] * 3, embedding=EmbeddingParams(dimensions=32))


@pytest.mark.parametrize(
    ("fields", "dimensions", "fits"),
    [
        ({"inputs": ["a"]}, 64, True),
        ({"prompt": "a"}, 0, True),
        ({"inputs": ["a"]}, 0, False),
        ({"prompt": "a"}, 64, False),
    ],
)
def test_the_kind_of_job_has_to_be_the_model_s(fields: dict[str, Any], dimensions: int, fits: bool) -> None:
    job = Job(id="j", model="m", **fields)
    limits = Limits(10, 90, dimensions)
    if fits:
        return check_kind(job, limits)
    with pytest.raises(InvalidJobError) as refusal:
        check_kind(job, limits)
    assert (refusal.value.error.param, refusal.value.error.code) == ("model", "unsupported_model")
    return None
