"""Bodies to Jobs: every parameter arrives, every bad value is named."""

from __future__ import annotations

from typing import Any

import pytest

from api.errors import ApiError
from api.requests import (
    CHAT_COMPLETIONS,
    PLAIN_COMPLETIONS,
    ignored_params,
    job_from_body,
    jobs_from_request,
    parse_body,
)
from schemas.messages import Job, SamplingParams, decode, encode

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HELLO} | fields


def plain(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "once"} | fields


def test_every_parameter_arrives() -> None:
    body = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        seed=7,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        max_tokens=9,
        min_tokens=3,
        ignore_eos=True,
        n=2,
        logit_bias={"5": -100, "6": 1.5},
        logprobs=True,
        top_logprobs=4,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        user="u",
        metadata={"k": "v"},
        chat_template_kwargs={"enable_thinking": False},
    )
    job = job_from_body(CHAT_COMPLETIONS, body, job_id="j", owner="o")
    expected = SamplingParams(
        n=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.1,
        seed=7,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        max_tokens=9,
        min_tokens=3,
        ignore_eos=True,
        logit_bias={5: -100.0, 6: 1.5},
        logprobs=4,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )
    assert job.sampling == expected
    assert (job.id, job.model, job.owner, job.messages) == ("j", "m", "o", HELLO)
    assert job.template_kwargs == {"enable_thinking": False}
    assert ignored_params(CHAT_COMPLETIONS, parse_body(CHAT_COMPLETIONS, body)) == []
    assert decode(Job, encode(job)) == job


def test_absent_and_null_mean_the_default_and_a_seed_is_drawn() -> None:
    names = ("temperature", "top_p", "stop", "n", "logit_bias", "seed", "tools", "max_tokens", "stream")
    job = job_from_body(CHAT_COMPLETIONS, chat(**dict.fromkeys(names)), job_id="j")
    seeds = {job_from_body(CHAT_COMPLETIONS, chat(), job_id="j").sampling.seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert job.sampling == SamplingParams(seed=job.sampling.seed)


@pytest.mark.parametrize(
    ("prompt", "texts", "ids"),
    [
        ("a", ["a"], [None]),
        (["a", "b"], ["a", "b"], [None, None]),
        ([1, 2], [None], [[1, 2]]),
        ([[1], [2, 3]], [None, None], [[1], [2, 3]]),
    ],
)
def test_four_forms_of_prompt(prompt: Any, texts: list[Any], ids: list[Any]) -> None:
    jobs = jobs_from_request(parse_body(PLAIN_COMPLETIONS, plain(prompt=prompt)), job_id="j")
    assert [job.prompt for job in jobs] == texts
    assert [job.prompt_token_ids for job in jobs] == ids
    assert [job.id for job in jobs] == (["j"] if len(jobs) == 1 else ["j-0", "j-1"])
    assert all(job.sampling.max_tokens == 16 for job in jobs)


def test_content_parts_and_developer_become_what_templates_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": parts, "name": "n", "mood": "good"},
    ]
    body = chat(messages=messages, colour="red", tools=[])
    assert job_from_body(CHAT_COMPLETIONS, body, job_id="j").messages == [
        {"role": "system", "content": "d"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a\nb", "name": "n"},
    ]
    assert ignored_params(CHAT_COMPLETIONS, parse_body(CHAT_COMPLETIONS, body)) == ["colour", "messages[2].mood"]


CHAT_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"stop": [""]}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_type"),
    ({"stop": ["x"] * 65}, "stop", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "invalid_type"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    ({"model": ""}, "model", "invalid_value"),
    ({"model": "m" * 129}, "model", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), CHAT_FAULTS, ids=lambda value: str(value)[:40])
def test_bad_chat_values_are_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(CHAT_COMPLETIONS, chat(**fields), job_id="j")
    error = caught.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param, error.code) == (param, code), error.message


@pytest.mark.parametrize("prompt", [None, [], [[]], [1, "a"], ["a", 1], [-1], [True], {"a": 1}, [[1], "a"], 5])
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(PLAIN_COMPLETIONS, plain(prompt=prompt), job_id="j")
    assert (caught.value.status, caught.value.param) == (400, "prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(CHAT_COMPLETIONS, chat(**fields), job_id="j")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "unsupported_parameter")


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"use_beam_search": True}, {"prompt_embeds": "x"}])
def test_what_completions_do_not_serve(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(PLAIN_COMPLETIONS, plain(**fields), job_id="j")
    assert caught.value.code == "unsupported_parameter"


def test_harmless_values_of_unsupported_parameters_pass() -> None:
    body = chat(tools=[], tool_choice="auto", response_format={"type": "text"}, modalities=["text"])
    assert ignored_params(CHAT_COMPLETIONS, parse_body(CHAT_COMPLETIONS, body)) == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (plain(stream=True), 400, "stream"),
        (plain(prompt=["a", "b"]), 400, "prompt"),
        ({"prompt": "a"}, 400, "model"),
        ([], 400, None),
    ],
)
def test_a_batch_line_is_one_whole_job(body: Any, status: int, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(PLAIN_COMPLETIONS, body, job_id="j")
    assert (caught.value.status, caught.value.param) == (status, param)


def test_unknown_endpoint() -> None:
    with pytest.raises(ApiError) as caught:
        parse_body("/v1/moderations", {})
    assert (caught.value.status, caught.value.code) == (404, "invalid_url")
