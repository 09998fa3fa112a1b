"""Tokens that a request allows or rules out, and prefixes that it does not share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from schemas.messages import SamplingParams
from tests.engine import tiny
from workers.engine.bad_sequences import BadSequences
from workers.protocol import AddRequest

PROMPT = [5, 9, 12, 7]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.reference()


def generated(model: Any, *, asynchronous: bool = False, made: tuple[int, ...] = (), **sampling: Any) -> list[int]:
    engine = tiny.engine(model)
    engine.asynchronous = asynchronous
    request = tiny.request("a", PROMPT, **sampling)
    request = AddRequest("a", PROMPT, request.sampling, list(made))
    return tiny.tokens(tiny.run(engine, [request, tiny.request("b", PROMPT[:3])])["a"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_sampled(model: Any, temperature: float) -> None:
    allowed = [3, 11, 40]
    made = generated(model, allowed_token_ids=allowed, temperature=temperature, seed=1)
    assert len(made) == 24
    assert set(made) <= set(allowed)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_bad_sequence_is_never_completed(model: Any, length: int, asynchronous: bool) -> None:
    free = generated(model)
    bad = [free[index : index + length] for index in (0, 4)]
    made = generated(model, bad_token_ids=bad, asynchronous=asynchronous)
    assert made != free
    windows = [made[index : index + length] for index in range(len(made))]
    assert all(sequence not in windows for sequence in bad)
    assert made[: length - 1] == free[: length - 1]


def test_a_resumed_output_is_followed_from_its_beginning(model: Any) -> None:
    free = generated(model)
    bad = [free[2:5]]
    whole = generated(model, bad_token_ids=bad)
    assert generated(model, made=tuple(whole[:4]), bad_token_ids=bad) == whole[4:]
    assert whole[:4] == free[:4]
    assert whole[4] != free[4]


def test_sequences_follow_the_tokens() -> None:
    bad = BadSequences([[7], [1, 2, 3], [2, 4]], [1], CPU)

    def ruled_out() -> list[int]:
        logits = torch.zeros(10)
        bad.rule_out(logits)
        return torch.nonzero(logits == -torch.inf)[:, 0].tolist()

    assert ruled_out() == [7]
    bad.take(torch.tensor([2]))
    assert ruled_out() == [3, 4, 7]
    bad.take(torch.tensor([2]))
    assert ruled_out() == [4, 7]


def test_what_allows_nothing_still_ends(model: Any) -> None:
    assert len(generated(model, allowed_token_ids=[5], bad_token_ids=[[5]], temperature=1.0, seed=3)) == 24


def test_prefixes_are_shared_within_one_salt_only(model: Any) -> None:
    engine = tiny.engine(model)
    prompt = list(range(3, 3 + 4 * tiny.BLOCK_SIZE + 1))
    cached: dict[str, int] = {}
    for name, salt in [("first", "a"), ("other", "b"), ("none", ""), ("again", "a"), ("none again", "")]:
        request = AddRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=1), cache_salt=salt)
        cached[name] = tiny.run(engine, [request])[name][0].cached_tokens
    assert cached == {
        "first": 0,
        "other": 0,
        "none": 0,
        "again": 4 * tiny.BLOCK_SIZE,
        "none again": 4 * tiny.BLOCK_SIZE,
    }
