"""Log probabilities over HTTP are those of transformers on the same weights (fp32), of outputs and of prompts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.delivery.tiny_engine import VOCAB, model
from tests.surface.conftest import Surface

PLAIN, CHAT = "/v1/completions", "/v1/chat/completions"
CLOSE = 1e-3
PROMPTS = 20


def prompts() -> list[list[int]]:
    chosen = random.Random(7)
    return [[chosen.randrange(3, VOCAB) for _ in range(chosen.randrange(2, 60))] for _ in range(PROMPTS)]


@torch.inference_mode()
def reference(ids: list[int]) -> torch.Tensor:
    """Log probabilities of each next token: [len(ids), VOCAB]."""
    return model()(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def greedy(prompt: list[int], **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | more


def check_completion(choice: dict[str, Any], prompt: list[int], first: int) -> None:
    """The choice's log probabilities, which begin with token `first` of prompt and output."""
    ids = prompt + choice["token_ids"]
    expected, given = reference(ids), choice["logprobs"]
    assert len(given["tokens"]) == len(ids) - first
    for index, (logprob, top) in enumerate(zip(given["token_logprobs"], given["top_logprobs"], strict=True)):
        position = first + index
        if position == 0:
            assert (logprob, top) == (None, None)
            continue
        row = expected[position - 1]
        assert logprob == pytest.approx(float(row[ids[position]]), abs=CLOSE)
        # Some tokens are spelled alike: parts of characters all read as U+FFFD.
        likeliest = float(row.max())
        assert max(top.values()) <= likeliest + CLOSE


async def test_completions_echo_and_several_outputs(surface: Surface) -> None:
    for prompt in prompts():
        (choice,) = (await surface.post(PLAIN, greedy(prompt, logprobs=3))).json()["choices"]
        check_completion(choice, prompt, len(prompt))
    for prompt in prompts()[:5]:
        (choice,) = (await surface.post(PLAIN, greedy(prompt, logprobs=2, echo=True))).json()["choices"]
        check_completion(choice, prompt, 0)
        body = greedy(prompt, logprobs=1, n=3, temperature=1.2, seed=4)
        several = (await surface.post(PLAIN, body)).json()["choices"]
        assert len({tuple(choice["token_ids"]) for choice in several}) > 1
        for choice in several:
            check_completion(choice, prompt, len(prompt))


async def test_alternatives_of_chat(surface: Surface) -> None:
    body = {"messages": [{"role": "user", "content": "the quick fox"}], "max_tokens": 8, "temperature": 0}
    body |= {"ignore_eos": True, "logprobs": True, "top_logprobs": 5, "return_token_ids": True}
    (choice,) = (await surface.post(CHAT, body)).json()["choices"]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    expected = reference(ids)
    for index, position in enumerate(choice["logprobs"]["content"], start=len(choice["prompt_token_ids"])):
        best = expected[index - 1].topk(5).values.tolist()
        assert [top["logprob"] for top in position["top_logprobs"]] == pytest.approx(best, abs=CLOSE)
        assert position["logprob"] == pytest.approx(float(expected[index - 1][ids[index]]), abs=CLOSE)


@pytest.mark.parametrize("cached", [False, True])
async def test_of_prompts(surface: Surface, cached: bool) -> None:
    for prompt in prompts():
        if cached:
            await surface.post(PLAIN, greedy(prompt))
        (choice,) = (await surface.post(PLAIN, greedy(prompt, prompt_logprobs=2, max_tokens=1))).json()["choices"]
        nothing, *positions = choice["prompt_logprobs"]
        assert nothing is None
        expected = reference(prompt)
        assert len(positions) == len(prompt) - 1
        for index, position in enumerate(positions, start=1):
            row = expected[index - 1]
            assert {str(prompt[index]), *(str(int(best)) for best in row.topk(2).indices)} == position.keys()
            for token, scored in position.items():
                assert scored["logprob"] == pytest.approx(float(row[int(token)]), abs=CLOSE)
                assert scored["rank"] == int((row > row[int(token)] + 1e-6).sum()) + 1
