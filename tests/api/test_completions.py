"""Chat and plain completions over HTTP, whole and streamed, byte for byte where clients care."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from api.chunks import ChunkWriter
from schemas.messages import Delta
from schemas.openai.chat import ChatCompletion, ChatCompletionChunk
from schemas.openai.completions import Completion
from tests.api.sse_reader import events, texts
from tests.api.stub_worker import StubWorker

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "stub", "messages": [{"role": "user", "content": text}]} | fields


def plain(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "stub", "prompt": prompt} | fields


async def test_chat_whole(http: httpx.AsyncClient, worker: StubWorker) -> None:
    response = await http.post(CHAT, json=chat("one two three"))
    body = response.json()
    ChatCompletion.model_validate(body)
    assert response.status_code == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 6
    assert [body["id"]] == [f"chatcmpl-{job_id}" for job_id in worker.jobs]
    assert worker.cancelled == set()


async def test_chat_streamed(http: httpx.AsyncClient) -> None:
    response = await http.post(CHAT, json=chat("one two three", stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = events(response.text)
    assert chunks.pop() == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        assert "usage" not in chunk
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        for delta, reason in [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "one"}, None),
            ({"content": " two"}, None),
            ({"content": " three"}, "stop"),
        ]
    ]


async def test_usage_chunk_comes_last_and_only_if_asked_for(http: httpx.AsyncClient) -> None:
    body = chat("one two", stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events((await http.post(CHAT, json=body)).text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2
    assert done == "[DONE]"


async def test_several_choices_open_in_order(http: httpx.AsyncClient) -> None:
    chunks = events((await http.post(CHAT, json=chat("one two", stream=True, n=3))).text)[:-1]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:3]] == [0, 1, 2]
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks[:3])
    assert texts(chunks, 3) == ["one two"] * 3
    whole = (await http.post(CHAT, json=chat("one two", n=3))).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_number_their_choices_on(http: httpx.AsyncClient, stream: bool) -> None:
    body = plain(["a b", "c d"], n=2, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
    response = await http.post(PLAIN, json=body)
    chunks = events(response.text)[:-1] if stream else [response.json()]
    for chunk in chunks:
        Completion.model_validate(chunk)
    assert texts(chunks, 4) == ["a b", "a b", "c d", "c d"]
    assert chunks[-1]["usage"]["prompt_tokens"] == 4
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_token_id_prompts(http: httpx.AsyncClient) -> None:
    assert (await http.post(PLAIN, json=plain([5, 6]))).json()["choices"][0]["text"] == "t5 t6"
    choices = (await http.post(PLAIN, json=plain([[5], [6]]))).json()["choices"]
    assert [choice["text"] for choice in choices] == ["t5", "t6"]


async def test_stop_and_length(http: httpx.AsyncClient) -> None:
    stopped = (await http.post(CHAT, json=chat("a b c", stop="b"))).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("a", "stop")
    cut = (await http.post(CHAT, json=chat("a b c", max_completion_tokens=2))).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("a b", "length")


async def test_chat_logprobs(http: httpx.AsyncClient) -> None:
    body = chat("a b", logprobs=True, top_logprobs=2)
    whole = (await http.post(CHAT, json=body)).json()["choices"][0]["logprobs"]["content"]
    assert [len(position["top_logprobs"]) for position in whole] == [2, 2]
    assert whole[1]["token"] == " b"
    chunks = events((await http.post(CHAT, json=body | {"stream": True})).text)[1:-1]
    streamed = [position for chunk in chunks for position in chunk["choices"][0]["logprobs"]["content"]]
    assert streamed == whole


async def test_completion_logprobs(http: httpx.AsyncClient) -> None:
    body = plain("one two three", logprobs=1)
    whole = (await http.post(PLAIN, json=body)).json()["choices"][0]["logprobs"]
    assert whole["text_offset"] == [0, 3, 7]
    chunks = events((await http.post(PLAIN, json=body | {"stream": True})).text)[:-1]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert {key: [item for part in streamed for item in part[key]] for key in whole} == whole


async def test_ignored_params_are_named_in_a_header_that_they_cannot_break(http: httpx.AsyncClient) -> None:
    extra = {"mood": 1, "bad\r\nname: x": 2, "user": "u", "metadata": {"a": "b"}}
    for stream in (False, True):
        response = await http.post(CHAT, json=chat("a", stream=stream, **extra))
        assert response.headers["x-headrace-ignored-params"] == "mood, bad__name__x"
    assert "x-headrace-ignored-params" not in (await http.post(CHAT, json=chat("a"))).headers


async def test_parameters_reach_the_worker(http: httpx.AsyncClient, worker: StubWorker) -> None:
    await http.post(CHAT, json=chat("a", temperature=0.25, seed=11, top_k=3))
    (job,) = worker.jobs.values()
    assert (job.sampling.temperature, job.sampling.seed, job.sampling.top_k) == (0.25, 11, 3)
    assert (job.job_class, job.stream, job.store_output) == ("interactive", False, False)
    assert job.deadline == pytest.approx(time.time() + 1800, abs=60)


async def test_text_is_encoded_as_json(http: httpx.AsyncClient) -> None:
    text = 'quote"back\\slash\u00e9\U0001f600'
    chunks = events((await http.post(CHAT, json=chat(text, stream=True))).text)
    assert texts(chunks) == [text]


@pytest.mark.parametrize("endpoint", [CHAT, PLAIN])
def test_no_reader_finds_a_line_end_in_text(endpoint: str) -> None:
    text = "a\n\r\u0085\u2028\u2029\x1e\u00e9"
    writer = ChunkWriter(endpoint, "id", 1, "m", include_usage=False)
    event = writer.delta(0, Delta(job="j", epoch=0, offset=0, text=text, token_ids=[1])).decode()
    assert event.splitlines() == [event[:-2], ""]
    assert texts(events(event)) == [text]
