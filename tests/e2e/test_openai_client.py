"""OpenAI's own client against the demo model: sync and async, streamed and not, to the end of a batch."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.e2e.service import BATCH_ENDS, BATCH_TIMEOUT, MODEL, Service

pytestmark = pytest.mark.model
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def async_client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def ask(client: openai.OpenAI, **parameters: Any) -> Any:
    return client.chat.completions.create(messages=QUESTION, **{**GREEDY, **parameters})


def complete(client: openai.OpenAI, prompt: Any = "One, two, three,", **parameters: Any) -> Any:
    return client.completions.create(prompt=prompt, **{**GREEDY, "max_tokens": 8, **parameters})


def texts(chunks: list[Any], of: str) -> list[str]:
    """What streamed choices add up to, by index."""
    made: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        part = choice.delta.content if of == "chat" else choice.text
        made[choice.index] = made.get(choice.index, "") + (part or "")
    return [made[index] for index in sorted(made)]


def test_chat(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert "Paris" in answer.choices[0].message.content
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 6


def test_chat_streamed_says_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=16)
    chunks = list(ask(client, max_tokens=16, stream=True, stream_options={"include_usage": True}))
    assert texts(chunks, "chat") == [whole.choices[0].message.content]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def test_completions(client: openai.OpenAI) -> None:
    whole = complete(client)
    assert "four" in whole.choices[0].text
    assert (whole.object, whole.choices[0].finish_reason, whole.usage.completion_tokens) == (
        "text_completion",
        "length",
        8,
    )
    assert texts(list(complete(client, stream=True)), "text") == [whole.choices[0].text]


def test_several_prompts(client: openai.OpenAI) -> None:
    alone = [complete(client, prompt).choices[0].text for prompt in ("One, two,", "A, B, C,")]
    together = complete(client, ["One, two,", "A, B, C,"])
    assert [choice.text for choice in together.choices] == alone
    assert together.usage.completion_tokens == 16


def test_two_choices(client: openai.OpenAI) -> None:
    parameters = {"n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    whole = ask(client, **parameters)
    contents = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert contents[0] != contents[1]
    assert whole.usage.completion_tokens == 24
    assert texts(list(ask(client, stream=True, **parameters)), "chat") == contents


def test_stop(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=16).choices[0].text
    assert "five" in whole
    stopped = complete(client, max_tokens=16, stop=["five"])
    assert stopped.choices[0].text == whole[: whole.index("five")]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < 16
    assert texts(list(complete(client, max_tokens=16, stop=["five"], stream=True)), "text") == [stopped.choices[0].text]


def test_logprobs(client: openai.OpenAI) -> None:
    answer = ask(client, max_tokens=6, logprobs=True, top_logprobs=3)
    positions = answer.choices[0].logprobs.content
    assert len(positions) == answer.usage.completion_tokens
    assert b"".join(bytes(position.bytes) for position in positions).decode() == answer.choices[0].message.content
    for position in positions:
        assert position.top_logprobs[0].token == position.token  # greedy
        best = [top.logprob for top in position.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert 0 >= best[0] == position.logprob
    plain = complete(client, logprobs=2).choices[0].logprobs
    assert len(plain.tokens) == len(plain.token_logprobs) == len(plain.text_offset) == 8
    assert all(len(top) == 2 for top in plain.top_logprobs)


def test_models(client: openai.OpenAI) -> None:
    assert [(model.id, model.object) for model in client.models.list()] == [(MODEL, "model")]
    assert client.models.retrieve(MODEL).owned_by == "headrace"


def lines() -> bytes:
    bodies = [{**GREEDY, "messages": QUESTION, "max_tokens": n + 1} for n in range(5)]
    return "\n".join(
        json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n, body in enumerate(bodies)
    ).encode()


def check_output(content: str, batch: Batch) -> None:
    outputs = {line["custom_id"]: line["response"] for line in map(json.loads, content.splitlines())}
    assert len(outputs) == 5
    assert {response["status_code"] for response in outputs.values()} == {200}
    made = [outputs[f"line-{n}"]["body"]["usage"]["completion_tokens"] for n in range(5)]
    assert made == [1, 2, 3, 4, 5]
    assert batch.usage is not None
    assert batch.usage.output_tokens == 15
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}


def test_files_and_a_batch(client: openai.OpenAI) -> None:
    file = client.files.create(file=("lines.jsonl", lines()), purpose="batch")
    assert client.files.content(file.id).content == lines()
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "a test"}
    )
    limit = time.monotonic() + BATCH_TIMEOUT
    while batch.status not in BATCH_ENDS and time.monotonic() < limit:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    check_output(client.files.content(batch.output_file_id).text, batch)
    assert batch.id in [listed.id for listed in client.batches.list()]
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert client.files.delete(file.id).deleted


async def test_async_chat_and_completions(async_client: openai.AsyncOpenAI) -> None:
    whole, plain = await asyncio.gather(
        async_client.chat.completions.create(messages=QUESTION, **GREEDY, max_tokens=12),
        async_client.completions.create(prompt="One, two, three,", **GREEDY, max_tokens=8),
    )
    stream = await async_client.chat.completions.create(messages=QUESTION, **GREEDY, max_tokens=12, stream=True)
    assert texts([chunk async for chunk in stream], "chat") == [whole.choices[0].message.content]
    pieces = await async_client.completions.create(prompt="One, two, three,", **GREEDY, max_tokens=8, stream=True)
    assert texts([chunk async for chunk in pieces], "text") == [plain.choices[0].text]


async def test_async_files_and_a_batch(async_client: openai.AsyncOpenAI) -> None:
    file = await async_client.files.create(file=("lines.jsonl", lines()), purpose="batch")
    batch = await async_client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    async with asyncio.timeout(BATCH_TIMEOUT):
        while batch.status not in BATCH_ENDS:
            await asyncio.sleep(0.1)
            batch = await async_client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    check_output((await async_client.files.content(batch.output_file_id)).text, batch)


def test_leaving_a_stream_leaves_nothing_running(client: openai.OpenAI, service: Service) -> None:
    with ask(client, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    service.assert_idle()
