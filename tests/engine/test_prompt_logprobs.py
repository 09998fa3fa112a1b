"""Log probabilities of prompts: transformers' own, however the prompt is cut, cached or preempted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from schemas.messages import SamplingParams
from tests.engine import tiny
from workers.engine.scheduler import MAX_SCORED
from workers.engine.scores import score
from workers.protocol import AddRequest, TokenLogprobs

PROMPTS = [[5, 9, 12, 7], list(range(3, 40)), [7, 7, 7], [11]]
EXACT = 1e-3


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.reference()


def expected(model: Any, prompt: list[int]) -> list[tuple[float, list[int], int]]:
    """Of each token but the first: its log probability, the three likeliest ids, and its rank."""
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt], device=model.device)).logits[0].log_softmax(-1)
    return [
        (row[token].item(), row.topk(3).indices.tolist(), int((row > row[token]).sum()) + 1)
        for row, token in zip(logprobs, prompt[1:], strict=False)
    ]


def check(model: Any, prompt: list[int], scores: list[TokenLogprobs] | None) -> None:
    assert scores is not None
    wanted = expected(model, prompt)
    assert len(scores) == len(wanted) == len(prompt) - 1
    for got, (logprob, top, rank) in zip(scores, wanted, strict=True):
        assert got.sampled == pytest.approx(logprob, abs=EXACT)
        assert (got.top_ids, got.rank) == (top, rank)
        assert got.top_logprobs == sorted(got.top_logprobs, reverse=True)


def scored(name: str, prompt: list[int], count: int = 3) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, prompt_logprobs=3)
    return AddRequest(name, prompt, sampling)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("budget", [4, 64])
def test_they_are_transformers_own(model: Any, budget: int, asynchronous: bool) -> None:
    """Beside requests that want none, in one step or in chunks of a few tokens."""
    engine = tiny.engine(model, max_batched_tokens=budget)
    engine.asynchronous = asynchronous
    requests = [scored(f"{index}", prompt) for index, prompt in enumerate(PROMPTS)]
    others = [tiny.request(f"other {index}", prompt, max_tokens=5) for index, prompt in enumerate(PROMPTS)]
    outputs = tiny.run(engine, [one for pair in zip(requests, others, strict=True) for one in pair])
    for request, prompt in zip(requests, PROMPTS, strict=True):
        first, *rest = outputs[request.id]
        check(model, prompt, first.prompt_logprobs)
        assert {output.prompt_logprobs for output in rest} == {None}
        assert tiny.tokens(outputs[request.id]) == tiny.greedy(model, prompt, 3)
    assert all(output.prompt_logprobs is None for one in others for output in outputs[one.id])


def test_what_is_cached_is_computed_all_the_same(model: Any) -> None:
    engine = tiny.engine(model)
    prompt = list(range(3, 3 + 4 * tiny.BLOCK_SIZE))
    tiny.run(engine, [tiny.request("before", prompt)])
    outputs = tiny.run(engine, [scored("a", prompt)])["a"]
    check(model, prompt, outputs[0].prompt_logprobs)
    assert outputs[0].cached_tokens == 0
    assert tiny.run(engine, [tiny.request("after", prompt)])["after"][0].cached_tokens > 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preempted_requests_have_them_once_and_right(model: Any, asynchronous: bool) -> None:
    engine = tiny.engine(model, blocks=14, max_batched_tokens=16)
    engine.asynchronous = asynchronous
    requests = [scored(f"{index}", [5 + index, *range(3, 20)], 12) for index in range(4)]
    outputs = tiny.run(engine, requests)
    assert engine.scheduler.preemptions > 0
    for request in requests:
        first, *rest = outputs[request.id]
        check(model, request.prompt_token_ids, first.prompt_logprobs)
        assert {output.prompt_logprobs for output in rest} == {None}


def test_a_resumed_output_has_them_too(model: Any) -> None:
    whole = tiny.tokens(tiny.run(tiny.engine(model), [scored("a", PROMPTS[1], 6)])["a"])
    rest = AddRequest("b", PROMPTS[1], scored("b", PROMPTS[1], 6).sampling, whole[:3])
    outputs = tiny.run(tiny.engine(model), [rest])["b"]
    assert tiny.tokens(outputs) == whole[3:]
    check(model, PROMPTS[1], outputs[0].prompt_logprobs)


def test_no_step_scores_more_than_its_share(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.scheduler.MAX_SCORED", 8)
    assert MAX_SCORED > 8
    engine = tiny.engine(model)
    launched: list[int] = []
    launch = engine.runner.launch

    def counted(plan: Any, masks: Any) -> Any:
        launched.append(sum(len(row.targets) for row in plan.prefill))
        return launch(plan, masks)

    monkeypatch.setattr(engine.runner, "launch", counted)
    requests = [scored("a", list(range(3, 40))), scored("b", list(range(4, 41)))]
    outputs = tiny.run(engine, requests)
    assert sum(launched) == 72
    assert max(launched) <= 8
    for request in requests:
        check(model, request.prompt_token_ids, outputs[request.id][0].prompt_logprobs)


def test_ranks_begin_at_one() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]])
    scores = score(logits, torch.tensor([2, 1]))
    assert scores.ranks.tolist() == [2, 1]
    assert [row.top_ids for row in scores.rows(0, 1, 2)] == [[1, 2]]


def test_unknown_ids_are_refused(model: Any) -> None:
    for restriction in ({"allowed_token_ids": [10**6]}, {"bad_token_ids": [[3, 10**6]]}):
        with pytest.raises(ValueError, match=next(iter(restriction))):
            tiny.engine(model).add(AddRequest("a", [5], SamplingParams(**restriction)))  # type: ignore[arg-type]
