"""Every parameter of completions and chat: accepted, and effective. What does something else with it fails here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.api import sse_reader
from tests.surface.conftest import Surface

PLAIN, CHAT = "/v1/completions", "/v1/chat/completions"
SPECIAL, END, OTHER = 0, 2, 40
"""The tokenizer's special token, the one that ends the model's outputs, and any other."""
GREEDY: dict[str, Any] = {"prompt": "the quick brown fox", "temperature": 0, "max_tokens": 24, "return_token_ids": True}
RANDOM = GREEDY | {"temperature": 1.5, "seed": 3}
TALK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 4,
    "return_token_ids": True,
}
ENDS = GREEDY | {"logit_bias": {str(END): 100}, "max_tokens": 6}
"""Says nothing but the token that ends an output."""
FOLLOWED = {"role": "assistant", "content": "so"}

Answer = dict[str, Any]
Effect = Callable[[Answer, Answer], bool]
"""(with the parameter, without it) -> whether it did what it is for."""


def ids(answer: Answer) -> list[int]:
    made: list[int] = answer["choices"][0]["token_ids"]
    return made


def text(answer: Answer) -> str:
    return str(answer["choices"][0]["text"])


def prompt(answer: Answer) -> list[int]:
    made: list[int] = answer["choices"][0]["prompt_token_ids"]
    return made


def differs(changed: Answer, plain: Answer) -> bool:
    return ids(changed) != ids(plain)


def length(count: int) -> Effect:
    return lambda changed, plain: len(ids(changed)) == count != len(ids(plain))


def prompt_grows_by(count: int) -> Effect:
    return lambda changed, plain: len(prompt(changed)) - len(prompt(plain)) == count


COMPLETIONS: dict[str, tuple[dict[str, Any], Any, Effect]] = {
    "temperature": (GREEDY | {"seed": 3}, 1.5, differs),
    "seed": (RANDOM, 4, differs),
    "top_p": (RANDOM, 1e-6, differs),
    "top_k": (RANDOM, 1, differs),
    "min_p": (RANDOM, 1.0, differs),
    "presence_penalty": (GREEDY | {"max_tokens": 60}, 2.0, differs),
    "frequency_penalty": (GREEDY | {"max_tokens": 60}, 2.0, differs),
    "repetition_penalty": (GREEDY | {"max_tokens": 60}, 5.0, differs),
    "logit_bias": (GREEDY, {str(OTHER): 100}, lambda changed, _: set(ids(changed)) == {OTHER}),
    "allowed_token_ids": (GREEDY, [OTHER, OTHER + 1], lambda changed, _: set(ids(changed)) <= {OTHER, OTHER + 1}),
    "max_tokens": (GREEDY, 3, length(3)),
    "ignore_eos": (ENDS, True, length(6)),
    "min_tokens": (ENDS, 4, lambda changed, plain: len(ids(changed)) > len(ids(plain))),
    "skip_special_tokens": (
        GREEDY | {"logit_bias": {str(SPECIAL): 100}},
        False,
        lambda changed, _: "<|end|>" in text(changed),
    ),
    "truncate_prompt_tokens": (GREEDY, 2, lambda changed, plain: prompt(changed) == prompt(plain)[-2:]),
    "add_special_tokens": (GREEDY, False, prompt_grows_by(-1)),
    "return_token_ids": (GREEDY | {"return_token_ids": False}, True, lambda changed, _: len(ids(changed)) > 0),
    "n": (RANDOM, 3, lambda changed, _: len(changed["choices"]) == 3),
    "best_of": (RANDOM, 3, lambda changed, plain: tokens_made(changed) > tokens_made(plain)),
    "logprobs": (GREEDY, 2, lambda changed, _: len(changed["choices"][0]["logprobs"]["top_logprobs"][0]) == 2),
    "prompt_logprobs": (
        GREEDY,
        1,
        lambda changed, _: len(changed["choices"][0]["prompt_logprobs"]) == len(prompt(changed)),
    ),
    "echo": (GREEDY, True, lambda changed, plain: text(changed) == GREEDY["prompt"] + text(plain)),
    "request_id": (GREEDY, "mine", lambda changed, _: changed["id"] == "cmpl-mine"),
    "structured_outputs": (GREEDY, {"choice": ["yes", "no"]}, lambda changed, _: text(changed) in ("yes", "no")),
    "guided_choice": (GREEDY, ["yes", "no"], lambda changed, _: text(changed) in ("yes", "no")),
    "guided_regex": (GREEDY, "[0-9]{3}", lambda changed, _: text(changed).isdigit()),
    "guided_grammar": (GREEDY, 'start: "a" "b"', lambda changed, _: text(changed) == "ab"),
    "guided_json": (GREEDY, {"enum": [7]}, lambda changed, _: json.loads(text(changed)) == 7),
    "response_format": (
        GREEDY,
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [7]}}},
        lambda changed, _: json.loads(text(changed)) == 7,
    ),
}


def tokens_made(answer: Answer) -> int:
    return int(answer["usage"]["completion_tokens"])


TEMPLATED: dict[str, tuple[dict[str, Any], Any, Effect]] = {
    "max_completion_tokens": (TALK | {"max_tokens": None}, 3, length(3)),
    "chat_template": (TALK, "{{ messages[0].content[:1] }}", lambda changed, _: len(prompt(changed)) == 1),
    "chat_template_kwargs": (TALK, {"suffix": "zz"}, prompt_grows_by(2)),
    "add_generation_prompt": (TALK, False, lambda changed, plain: len(prompt(changed)) < len(prompt(plain))),
    "continue_final_message": (
        TALK | {"messages": [*TALK["messages"], FOLLOWED]},
        True,
        lambda changed, plain: len(prompt(changed)) < len(prompt(plain)),
    ),
    "documents": (TALK, [{"text": "q"}], prompt_grows_by(3)),
    "tools": (TALK, [{"type": "function", "function": {"name": "qq"}}], prompt_grows_by(2)),
    "logprobs": (TALK, True, lambda changed, _: len(changed["choices"][0]["logprobs"]["content"]) == 4),
}

ACCEPTED = {
    "spaces_between_special_tokens": False,
    "user": "me",
    "metadata": {"a": "b"},
    "safety_identifier": "me",
    "prompt_cache_key": "k",
}
"""What changes nothing here, and is known."""


async def ask(surface: Surface, path: str, body: dict[str, Any]) -> Answer:
    answer = await surface.post(path, body)
    assert "x-headrace-ignored-params" not in answer.headers
    made: Answer = answer.json()
    return made


async def walk(surface: Surface, path: str, table: dict[str, tuple[dict[str, Any], Any, Effect]]) -> list[str]:
    """The parameters without their effect."""
    idle = []
    for name, (base, value, effect) in table.items():
        plain, changed = await ask(surface, path, base), await ask(surface, path, base | {name: value})
        if not effect(changed, plain):
            idle.append(name)
    return idle


async def test_parameters_of_completions(surface: Surface) -> None:
    assert await walk(surface, PLAIN, COMPLETIONS) == []


async def test_parameters_of_chat(surface: Surface) -> None:
    assert await walk(surface, CHAT, TEMPLATED) == []


async def test_narrow_choices_are_the_likeliest(surface: Surface) -> None:
    greedy = ids(await ask(surface, PLAIN, GREEDY))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert ids(await ask(surface, PLAIN, RANDOM | narrow)) == greedy


async def test_stopping(surface: Surface) -> None:
    whole = await ask(surface, PLAIN, GREEDY)
    said, token = text(whole), ids(whole)[5]
    stop = said[7:9]
    stopped = await ask(surface, PLAIN, GREEDY | {"stop": [stop]})
    assert text(stopped) == said[: said.index(stop)]
    included = await ask(surface, PLAIN, GREEDY | {"stop": stop, "include_stop_str_in_output": True})
    assert text(included) == said[: said.index(stop) + len(stop)]
    by_token = await ask(surface, PLAIN, GREEDY | {"stop_token_ids": [token]})
    assert ids(by_token) == ids(whole)[: ids(whole).index(token) + 1]
    assert [answer["choices"][0]["finish_reason"] for answer in (stopped, included, by_token)] == ["stop"] * 3


async def test_bad_words_are_not_said(surface: Surface) -> None:
    whole = await ask(surface, PLAIN, GREEDY)
    word = surface.tokenizer.decode(ids(whole)[:1])
    made = await ask(surface, PLAIN, GREEDY | {"bad_words": [word]})
    assert ids(made)[0] != ids(whole)[0]


async def test_what_the_engine_is_told(surface: Surface) -> None:
    await ask(surface, PLAIN, GREEDY | {"priority": -7, "cache_salt": "mine"})
    request = surface.engine.added[-1]
    assert (request.priority, request.cache_salt) == (-7, "mine")


async def test_streams_tell_their_usage(surface: Surface) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await surface.post(PLAIN, GREEDY | {"stream": True, "stream_options": options})
    *chunks, _ = sse_reader.events(answer.text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[-1], chunks[-1]["choices"]) == (24, [])


async def test_top_logprobs_and_reasoning_effort(surface: Surface) -> None:
    made = await ask(surface, CHAT, TALK | {"logprobs": True, "top_logprobs": 3, "reasoning_effort": "low"})
    assert [len(position["top_logprobs"]) for position in made["choices"][0]["logprobs"]["content"]] == [3] * 4


async def test_batched_and_token_id_prompts(surface: Surface) -> None:
    alone = [await ask(surface, PLAIN, GREEDY | {"prompt": each}) for each in ("a fox", "a dog")]
    for form in (["a fox", "a dog"], [prompt(answer) for answer in alone]):
        together = await ask(surface, PLAIN, GREEDY | {"prompt": form})
        assert [choice["token_ids"] for choice in together["choices"]] == [ids(answer) for answer in alone]


@pytest.mark.parametrize(("path", "base"), [(PLAIN, GREEDY), (CHAT, TALK)])
async def test_what_is_only_accepted_and_what_is_unknown(surface: Surface, path: str, base: dict[str, Any]) -> None:
    plain = await ask(surface, path, base)
    assert ids(await ask(surface, path, base | ACCEPTED)) == ids(plain)
    answer = await surface.post(path, base | {"wibble": 1, "wobble": None})
    assert answer.headers["x-headrace-ignored-params"] == "wibble, wobble"
