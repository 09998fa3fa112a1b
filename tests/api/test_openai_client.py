"""OpenAI's own client against the service, over a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.api.stub_worker import StubWorker


@pytest.fixture
async def client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="stub", messages=[{"role": "user", "content": "one two"}], logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].message.content == "one two"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].token == "one"


async def test_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="stub",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    texts = ["", ""]
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["one two"] * 2
    assert usage is not None
    assert usage.completion_tokens == 4


async def test_a_history_echoed_back(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    first = await client.chat.completions.create(model="stub", messages=[{"role": "user", "content": "one"}])
    response = await client.chat.completions.with_raw_response.create(
        model="stub",
        messages=[first.choices[0].message.model_dump(), {"role": "user", "content": "two"}],  # type: ignore[list-item]
    )
    assert "x-headrace-ignored-params" not in response.headers
    assert list(worker.jobs.values())[-1].messages == [
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
    ]


async def test_completion(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="stub", prompt=["one two", "three"], max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["one", "three"]
    stream = await client.completions.create(model="stub", prompt="one two", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two"


async def test_leaving_a_stream_cancels_the_job(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    stream = await client.chat.completions.create(
        model="stub", messages=[{"role": "user", "content": "hang-late b"}], stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await worker.until_cancelled()


async def test_errors_become_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="stub", prompt="x", temperature=9)
    assert bad.value.param == "temperature"
    stream = await client.completions.create(model="stub", prompt="fail-late b c", stream=True)
    with pytest.raises(openai.APIError, match="broken"):
        async for _ in stream:
            pass


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["stub"]
    assert (await client.models.retrieve("stub")).owned_by == "headrace"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("none/such")


async def test_files(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(file=("lines.jsonl", b"{}\n" * 1000), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.status) == (3000, "lines.jsonl", "batch", "processed")
    other = await client.files.create(
        file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert other.expires_at == other.created_at + 3600
    assert [file.id async for file in client.files.list()] == [other.id, made.id]
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == [made.id, other.id]
    assert [file.id async for file in client.files.list(purpose="batch")] == [made.id]
    assert (await client.files.retrieve(made.id)) == made
    assert (await client.files.content(made.id)).content == b"{}\n" * 1000
    assert (await client.files.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)


async def test_batches(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("lines.jsonl", b"{}\n"), purpose="batch")
    made = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"k": "v"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (made.status, made.metadata, made.errors) == ("validating", {"k": "v"}, None)
    assert made.request_counts is not None
    assert made.request_counts.total == 0
    assert (await client.batches.retrieve(made.id)) == made
    second = await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    assert [batch.id async for batch in client.batches.list(limit=1)] == [second.id, made.id]
    assert (await client.batches.cancel(made.id)).status in ("cancelling", "cancelled")
