"""A worker dies, stands still or is cut off in mid-stream: its clients' streams are, token for token, those that come
without it, whatever sampling they asked for."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.messages import Grammar
from tests.delivery.conftest import undisturbed
from tests.delivery.service import Answer, Service, check_same, job
from workers.front import suspects

WORDS = Grammar(kind="regex", value="[a-z]{2,9}(-[a-z]{2,9}){7}")
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "without a seed": {"temperature": 0.9, "top_p": 0.95},
    "top-k and min-p": {"temperature": 1.3, "seed": 8, "top_k": 40, "min_p": 0.01},
    "two choices": {"temperature": 1.0, "seed": 3, "n": 2},
    "logprobs": {"temperature": 1.0, "seed": 4, "logprobs": 3},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "bias": {"temperature": 1.0, "seed": 5, "logit_bias": {40: 4.0, 41: 4.0}},
    "grammar": {"temperature": 1.0, "seed": 9, "n": 2, "grammar": WORDS},
    "min_tokens": {"temperature": 1.0, "seed": 6, "min_tokens": 20, "stop_token_ids": list(range(60, 140))},
}


async def resumed(service: Service, steps: int, sampling: dict[str, Any], *, zombie: bool) -> Answer:
    """The answer to a job whose first worker makes `steps` tokens. A zombie goes on once its job is another's: before
    the other has begun, and to the end."""
    asked = job(**sampling)
    first, _ = await service.worker()
    async with service.asked(asked) as answer:
        await first.until_added(asked.sampling.n)
        await first.step(steps + 1)  # the first one computes the prompt
        if zombie:
            await service.freeze()
        else:
            await service.kill()
        second, _ = await service.worker()
        await second.until_added(asked.sampling.n)
        if zombie:
            await first.play()
        await second.play()
        return await answer


@pytest.mark.parametrize("zombie", [False, True], ids=["killed", "zombie"])
@pytest.mark.parametrize("steps", [3, 17])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
async def test_the_stream_is_whole(service: Service, sampling: dict[str, Any], steps: int, zombie: bool) -> None:
    whole = await undisturbed(job(**sampling))
    answer = await resumed(service, steps, sampling, zombie=zombie)
    check_same(answer, whole)
    assert answer.result.epoch == 1
    assert (await service.ledger(job())).usage.completion_tokens == whole.result.usage.completion_tokens
    (total,) = await service.store.results.usage("")
    assert (total.jobs, total.completion_tokens) == (1, whole.result.usage.completion_tokens)


@pytest.mark.parametrize("steps", [8, 9, 10, 11, 12])
async def test_a_stop_string_may_lie_over_the_death(service: Service, steps: int) -> None:
    """Two characters of the text, wherever tokens cut them: some of the deaths fall between them."""
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 21}
    free = await undisturbed(job(**sampling))
    middle = len(free.texts[0]) // 2
    sampling["stop"] = [free.texts[0][middle : middle + 2]]
    whole = await undisturbed(job(**sampling))
    assert whole.finishes == [["stop"]]
    assert 0 < len(whole.tokens[0]) < len(free.tokens[0])
    check_same(await resumed(service, min(steps, len(whole.tokens[0]) - 1), sampling, zombie=False), whole)


async def test_five_deaths_in_a_row(service: Service, whole: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "SPREAD_SECONDS", 0.01)
    asked = job()
    async with service.asked(asked) as answer:
        for number in range(5):
            engine, _ = await service.worker()
            await engine.until_added(1)
            await engine.step(4)
            await service.kill(number)
        engine, _ = await service.worker()
        await engine.until_added(1)
        await engine.play()
        check_same(await answer, whole)
    assert (await service.ledger(asked)).epoch == 5
