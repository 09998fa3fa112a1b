"""Parameters beyond OpenAI's: they arrive in the Job, or are refused by name, and what they add to answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api.errors import ApiError
from api.idempotency import json_fingerprint
from api.requests import CHAT_COMPLETIONS, PLAIN_COMPLETIONS, job_from_body
from api.responses import body_from_result
from api.rich_chunks import chunk_writer
from api.store import Store
from schemas.messages import (
    Choice,
    Delta,
    Job,
    PositionLogprobs,
    Result,
    ScoredToken,
    TokenLogprob,
    Usage,
    decode,
    encode,
)
from schemas.openai.completions import Completion, CompletionRequest
from tests.api import sse_reader
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, PLAIN, chat, plain


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    *chunks, done = sse_reader.events(text)
    assert done == "[DONE]"
    return chunks


def job_of(endpoint: str, body: dict[str, Any]) -> Job:
    job = job_from_body(endpoint, body, job_id="j")
    assert decode(Job, encode(job)) == job
    return job


def test_they_arrive() -> None:
    given: dict[str, Any] = {
        "add_special_tokens": False,
        "truncate_prompt_tokens": -1,
        "echo": True,
        "return_token_ids": True,
        "priority": -5,
        "cache_salt": "mine",
    }
    sampling = {"bad_words": ["no", "not this"], "allowed_token_ids": [1, 2], "prompt_logprobs": 0}
    job = job_of(
        PLAIN_COMPLETIONS, plain("a", **given, **sampling, n=2, best_of=5, spaces_between_special_tokens=False)
    )
    assert {name: getattr(job, name) for name in given} == given
    assert {name: getattr(job.sampling, name) for name in sampling} == sampling
    assert (job.sampling.n, job.sampling.best_of, job.sampling.num_outputs) == (2, 5, 5)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}),
        ({"documents": [{"text": "x"}]}, {"documents": [{"text": "x"}]}),
        ({"chat_template_kwargs": {"a": 1}, "documents": []}, {"a": 1}),
    ],
)
def test_chat_templates_get_their_arguments(fields: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert job_of(CHAT_COMPLETIONS, chat("a", **fields)).template_kwargs == arguments


def test_a_template_goes_with_its_job_as_it_is() -> None:
    assert job_of(CHAT_COMPLETIONS, chat("a", chat_template="{{ x }}")).chat_template == "{{ x }}"


def test_what_is_unset_stays_unset_on_the_wire() -> None:
    wire = encode(job_of(CHAT_COMPLETIONS, chat("a", temperature=1.0, top_k=0)))
    sampling = json.loads(wire)["sampling"]
    assert (sampling["temperature"], sampling["top_k"]) == (1.0, 0)
    assert not {"top_p", "min_p", "repetition_penalty", "max_tokens"} & sampling.keys()


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT_COMPLETIONS, chat("a", prompt_logprobs=21), "prompt_logprobs"),
        (CHAT_COMPLETIONS, chat("a", chat_template="x" * 65_537), "chat_template"),
        (
            CHAT_COMPLETIONS,
            chat("a", continue_final_message=True, add_generation_prompt=True),
            "continue_final_message",
        ),
        (CHAT_COMPLETIONS, chat("a", truncate_prompt_tokens=0), "truncate_prompt_tokens"),
        (CHAT_COMPLETIONS, chat("a", truncate_prompt_tokens=-2), "truncate_prompt_tokens"),
        (CHAT_COMPLETIONS, chat("a", bad_words=[""]), "bad_words[0]"),
        (CHAT_COMPLETIONS, chat("a", allowed_token_ids=[]), "allowed_token_ids"),
        (CHAT_COMPLETIONS, chat("a", priority=2**31), "priority"),
        (CHAT_COMPLETIONS, chat("a", request_id="a b"), "request_id"),
        (CHAT_COMPLETIONS, chat("a", request_id="fine"), "request_id"),
        (CHAT_COMPLETIONS, chat("a", stream=True, stream_options={"continuous_usage_stats": True}), "stream_options"),
        (PLAIN_COMPLETIONS, plain("a", n=3, best_of=2), "best_of"),
        (PLAIN_COMPLETIONS, plain("a", n=1, best_of=2, stream=True), "best_of"),
    ],
)
def test_what_cannot_be_is_named(endpoint: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        job_from_body(endpoint, body, job_id="j")
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("a b c")), (PLAIN, plain("a b c"))])
async def test_token_ids_come_where_they_are_asked_for(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    wanted = body | {"return_token_ids": True}
    (choice,) = (await http.post(path, json=wanted)).json()["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([0, 1, 2], [100, 101, 102])
    (choice,) = (await http.post(path, json=body)).json()["choices"]
    assert "token_ids" not in choice
    chunks = events((await http.post(path, json=wanted | {"stream": True})).text)
    choices = [chunk["choices"][0] for chunk in chunks if "token_ids" in chunk["choices"][0]]
    assert [choice["token_ids"] for choice in choices] == [[0], [1], [2]]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[100, 101, 102], None, None]


async def test_usage_goes_along_with_every_chunk(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = plain(["a b c", "d e"], stream=True, stream_options=options)
    *chunks, last = events((await http.post(PLAIN, json=body)).text)
    totals = [chunk["usage"]["total_tokens"] for chunk in chunks]
    assert totals == sorted(totals)
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-1]["usage"] | {"prompt_tokens_details": None} == last["usage"] | {"prompt_tokens_details": None}


async def test_without_it_only_the_last_chunk_has_usage(http: httpx.AsyncClient) -> None:
    body = plain("a b", stream=True, stream_options={"include_usage": True})
    *chunks, last = events((await http.post(PLAIN, json=body)).text)
    assert {str(chunk["usage"]) for chunk in chunks} == {"None"}
    assert last["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_id_names_the_answer(http: httpx.AsyncClient, stream: bool) -> None:
    for _ in range(2):  # it is a name, not an idempotency key
        response = await http.post(CHAT, json=chat("a", request_id="order-1", stream=stream))
        ids = {chunk["id"] for chunk in events(response.text)} if stream else {response.json()["id"]}
        assert ids == {"chatcmpl-order-1"}


async def test_a_replay_brings_the_same(http: httpx.AsyncClient, store: Store, worker: StubWorker) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat("a b c", stream=True, return_token_ids=True, stream_options=options)
    made = Choice(index=0, text="a b c", token_ids=[0, 1, 2], finish_reason="stop", prompt_token_ids=[7, 8])
    record, _ = await store.keys.claim("", "k", json_fingerprint(CHAT, body), "job")
    await store.keys.accept(record)
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    await store.results.record(Result(job="job", model="stub", outcome="completed", usage=usage, choices=[made]))
    response = await http.post(CHAT, json=body, headers={"idempotency-key": "k"})
    (chunk,) = [chunk for chunk in events(response.text) if "token_ids" in (chunk["choices"] or [{}])[0]]
    assert worker.jobs == {}
    assert chunk["choices"][0]["token_ids"] == [0, 1, 2]
    assert chunk["choices"][0]["prompt_token_ids"] == [7, 8]
    assert chunk["usage"]["total_tokens"] == 5


SCORED = [[ScoredToken(5, "b", -1.0, 3), ScoredToken(6, "x", -0.25, 1)]]


def test_prompt_logprobs_are_written_as_vllm_does() -> None:
    first = PositionLogprobs(TokenLogprob("a", None, [97]), [])
    second = PositionLogprobs(TokenLogprob("b", -1.0, [98]), [TokenLogprob("x", -0.25, [120])])
    choice = Choice(
        index=0, text="ab", token_ids=[5], finish_reason="length", logprobs=[first, second], prompt_logprobs=SCORED
    )
    result = Result(job="j", model="m", outcome="completed", choices=[choice])
    assert decode(Result, encode(result)) == result
    body = body_from_result(PLAIN_COMPLETIONS, result)["choices"][0]
    scored = {
        "5": {"logprob": -1.0, "rank": 3, "decoded_token": "b"},
        "6": {"logprob": -0.25, "rank": 1, "decoded_token": "x"},
    }
    assert body["prompt_logprobs"] == [None, scored]
    assert body["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [None, -1.0],
        "tokens": ["a", "b"],
        "top_logprobs": [None, {"x": -0.25, "b": -1.0}],
    }
    assert Completion.model_validate(body_from_result(PLAIN_COMPLETIONS, result)).choices[0].prompt_logprobs


def test_a_stream_brings_them_with_its_first_chunk() -> None:
    request = CompletionRequest.model_validate(plain("a", stream=True, prompt_logprobs=1))
    writer = chunk_writer(PLAIN_COMPLETIONS, "id", 1, request)
    first = writer.delta(0, Delta(job="j", epoch=0, offset=0, token_ids=[5], prompt_logprobs=SCORED))
    assert b'"prompt_logprobs":[null,{"5":{"logprob":-1.0,"rank":3,' in first
    assert writer.delta(0, Delta(job="j", epoch=0, offset=1, token_ids=[6])) == b""
    assert b"prompt_logprobs" not in writer.delta(0, Delta(job="j", epoch=0, offset=2, text="x", token_ids=[7]))
