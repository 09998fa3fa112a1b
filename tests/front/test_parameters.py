"""Parameters that are the text side's: what of the prompt is kept and shown, which outputs are best, words not to say."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.messages import Job, PositionLogprobs, SamplingParams, TokenLogprob
from tests.front.harness import EOS, REPLY, TOKENIZER, Bench, ids
from workers.front.choice import ChoiceContext, ChoiceRun, StopTokens
from workers.front.job_run import mean_logprob
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import Prompt, TextProcessor
from workers.front.tools.sink import Piece
from workers.protocol import TokenLogprobs, TokenOutput

LIMITS = Limits(max_model_len=64, vocab_size=len(TOKENIZER))
TEXT = TextProcessor(TOKENIZER)
SAID = "the quick fox"


async def prepared(**fields: Any) -> Prompt:
    sampling = SamplingParams(**{"max_tokens": 8, **fields.pop("sampling", {})})
    if not fields.keys() & {"messages", "prompt_token_ids"}:
        fields.setdefault("prompt", SAID)
    return await TEXT.prepare(Job(id="j", model="m", sampling=sampling, **fields), LIMITS)


@pytest.mark.parametrize("keep", [1, 2, 100])
async def test_the_prompts_end_is_kept(keep: int) -> None:
    assert (await prepared(truncate_prompt_tokens=keep)).token_ids == ids(SAID)[-keep:]
    assert (await prepared(prompt_token_ids=[5, 6, 7], truncate_prompt_tokens=keep)).token_ids == [5, 6, 7][-keep:]


async def test_as_much_is_kept_as_leaves_room_for_the_output() -> None:
    long = [5] * 200
    prompt = await prepared(prompt_token_ids=long, truncate_prompt_tokens=-1)
    assert (len(prompt.token_ids), prompt.max_tokens) == (56, 8)
    with pytest.raises(InvalidJobError):
        await prepared(prompt_token_ids=long)


async def test_special_tokens_of_the_tokenizer_are_added_as_asked() -> None:
    tokenizer = TextProcessor(TOKENIZER)
    calls: list[bool] = []
    tokenizer._encode = lambda text, *, special: calls.append(special) or [1]  # type: ignore[method-assign, func-returns-value]
    for prompt in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
        for wish in (None, True, False):
            await tokenizer.tokenize(Job(id="j", model="m", add_special_tokens=wish, **prompt), LIMITS)  # type: ignore[arg-type]
    assert calls == [True, True, False, False, True, False]


ASKED = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("fields", "echo"),
    [
        ({}, SAID),
        ({"truncate_prompt_tokens": 100}, SAID),
        ({"prompt_token_ids": [*ids("fox"), EOS]}, "fox"),
        ({"messages": ASKED}, ""),
        ({"messages": [*ASKED, {"role": "assistant", "content": "It is"}]}, "It is"),
    ],
)
async def test_what_is_echoed(fields: dict[str, Any], echo: str) -> None:
    assert (await prepared(echo=True, **fields)).echo == echo
    assert (await prepared(**fields)).echo == ""


async def test_bad_words_are_ruled_out_with_and_without_a_space() -> None:
    prompt = await prepared(sampling={"bad_words": ["fox", " quick"], "bad_token_ids": [[1, 2]]})
    spelled = [ids(text) for text in ("fox", " fox", "quick", " quick")]
    assert prompt.bad_token_ids == [[1, 2], *spelled]


@pytest.mark.parametrize(
    ("sampling", "param"),
    [({"allowed_token_ids": [10**6]}, "allowed_token_ids"), ({"bad_token_ids": [[1, 10**6]]}, "bad_token_ids")],
)
async def test_unknown_tokens_are_named(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        await prepared(sampling=sampling)
    assert caught.value.error.param == param


async def test_a_message_is_continued(bench: Bench) -> None:
    engine, _ = await bench.worker()
    messages = [*ASKED, {"role": "assistant", "content": "It is"}]
    job = bench.job(messages=messages, template_kwargs={"continue_final_message": True, "add_generation_prompt": False})
    await bench.submit(job)
    await engine.until_running(1)
    assert TOKENIZER.decode(engine.added[0].prompt_token_ids).endswith("<|assistant|>It is")


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_and_ids_of_every_choice(bench: Bench, stream: bool) -> None:
    engine, _ = await bench.worker()
    job = bench.job(prompt="hello ", stream=stream, echo=True, return_token_ids=True, sampling={"n": 2})
    await bench.submit(job)
    await engine.until_running(2)
    await engine.play()
    result = await bench.reader.result("j1")
    if stream:
        assert [bench.reader.texts["j1", index] for index in range(2)] == ["hello " + REPLY] * 2
        deltas = [delta for frame in bench.reader.frames for delta in frame.deltas]
        firsts = [(delta.prompt_tokens, delta.prompt_token_ids) for delta in deltas if delta.offset == 0]
        assert firsts == [(len(ids("hello ")), ids("hello "))] * 2
        assert {delta.prompt_tokens for delta in deltas if delta.offset} == {0}
    else:
        assert [choice.text for choice in result.choices] == ["hello " + REPLY] * 2
        assert [choice.prompt_token_ids for choice in result.choices] == [ids("hello ")] * 2


async def test_what_the_engine_is_told(bench: Bench) -> None:
    engine, _ = await bench.worker()
    sampling = {"n": 1, "best_of": 3, "bad_words": ["fox"], "seed": 5}
    await bench.submit(bench.job(stream=False, priority=-7, cache_salt="s", sampling=sampling))
    await engine.until_running(3)
    added = engine.added
    assert [(request.priority, request.cache_salt) for request in added] == [(-7, "s")] * 3
    assert {request.sampling.seed for request in added} == {5, 6, 7}
    assert all(request.sampling.bad_token_ids == [ids("fox"), ids(" fox")] for request in added)
    assert all(request.sampling.logprobs == 0 and not request.sampling.bad_words for request in added)
    await engine.play()
    result = await bench.reader.result("j1")
    assert [(choice.index, choice.logprobs) for choice in result.choices] == [(0, None)]
    assert result.usage.completion_tokens == 3 * len(result.choices[0].token_ids)


def test_the_best_has_the_highest_mean() -> None:
    def positions(*values: float) -> list[PositionLogprobs]:
        return [PositionLogprobs(TokenLogprob("", value, []), []) for value in values]

    assert mean_logprob(positions(-1.0, -2.0)) == -1.5
    assert mean_logprob(positions(-1.0, -1.0, -1.0)) > mean_logprob(positions(-1.2))
    assert mean_logprob([]) == float("-inf")


def choice_of(prompt: Prompt, **sampling: Any) -> ChoiceRun:
    """A choice whose engine has scored the prompt and made one token."""
    params = SamplingParams(logprobs=1, max_tokens=1, **sampling)
    choice = ChoiceRun(0, ChoiceContext(TEXT.vocabulary, params, prompt, StopTokens(params, ())))
    scores = [TokenLogprobs(-float(rank), [7, 8], [-0.5, -0.7], rank) for rank in range(1, len(prompt.token_ids))]
    made = [TokenLogprobs(-0.1, [9], [-0.1])]
    choice.take(TokenOutput("r", [9], "length", logprobs=made, prompt_logprobs=scores))
    return choice


async def test_what_is_echoed_is_accounted_for() -> None:
    prompt = await prepared(echo=True)
    choice = choice_of(prompt)
    for logprobs in (choice.finished().logprobs, choice.delta("j", 0, 0, Piece()).logprobs):
        assert logprobs is not None
        assert [position.sampled.logprob for position in logprobs] == [None, -1.0, -2.0, -0.1]
        assert "".join(position.sampled.token for position in logprobs[:-1]) == SAID
    later = choice.delta("j", 0, 1, Piece()).logprobs
    assert later == []
    assert choice.finished().prompt_logprobs is None


async def test_scores_of_the_prompt_come_with_its_tokens() -> None:
    prompt = await prepared()
    choice = choice_of(prompt, prompt_logprobs=2)
    scores = choice.finished().prompt_logprobs
    assert scores == choice.delta("j", 0, 0, Piece()).prompt_logprobs
    assert scores is not None
    assert [[(one.token_id, one.rank) for one in position] for position in scores] == [
        [(token, rank), (7, 1), (8, 2)] for rank, token in enumerate(ids(SAID)[1:], 1)
    ]
    logprobs = choice.finished().logprobs
    assert logprobs is not None
    assert len(logprobs) == 1
    assert choice.delta("j", 0, 1, Piece()).prompt_logprobs is None


@pytest.mark.parametrize(
    ("fields", "sampling", "asked"),
    [
        ({}, {"logprobs": 3}, None),
        ({"echo": True}, {"logprobs": 3}, 3),
        ({"echo": True}, {"logprobs": 3, "prompt_logprobs": 5}, 5),
        ({"echo": True}, {}, None),
    ],
)
async def test_the_engine_scores_what_is_needed(
    bench: Bench, fields: dict[str, Any], sampling: dict[str, Any], asked: int | None
) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(sampling=sampling, **fields))
    await engine.until_running(1)
    assert engine.added[0].sampling.prompt_logprobs == asked


def test_best_of_needs_an_end_and_enough_outputs() -> None:
    for fields in (
        {"stream": True, "sampling": SamplingParams(best_of=2)},
        {"sampling": SamplingParams(n=3, best_of=2)},
    ):
        with pytest.raises(ValueError, match="best_of"):
            Job(id="j", model="m", prompt="x", **fields)  # type: ignore[arg-type]
