"""LiteLLM's provider for OpenAI-compatible services, and through it the text completions and the errors."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest

from tests.clients.conftest import MODEL

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def to(url: str) -> dict[str, Any]:
    return {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none", "temperature": 0, "num_retries": 0}


def test_a_question(to: dict[str, Any]) -> None:
    answer = litellm.completion(messages=QUESTION, max_tokens=32, **to)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same(to: dict[str, Any]) -> None:
    whole = litellm.completion(messages=QUESTION, max_tokens=32, **to)
    stream = litellm.completion(
        messages=QUESTION, max_tokens=32, stream=True, stream_options={"include_usage": True}, **to
    )
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == whole.usage.completion_tokens


async def test_the_same_without_threads(to: dict[str, Any]) -> None:
    answer = await litellm.acompletion(messages=QUESTION, max_tokens=32, **to)
    stream = await litellm.acompletion(messages=QUESTION, max_tokens=32, stream=True, **to)
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert said == answer.choices[0].message.content


def test_a_tool_is_called_whole_and_streamed(to: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": "Weather in Rome?"}], "tools": [TOOL], "max_tokens": 64}
    whole = litellm.completion(tool_choice="required", **asked, **to)
    call = whole.choices[0].message.tool_calls[0].function
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city"}
    assert whole.choices[0].finish_reason == "tool_calls"
    chunks = list(litellm.completion(tool_choice="required", stream=True, **asked, **to))
    built = litellm.stream_chunk_builder(chunks, messages=asked["messages"])
    assert built.choices[0].message.tool_calls[0].function.arguments == call.arguments
    messages = [
        *asked["messages"],
        whole.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": whole.choices[0].message.tool_calls[0].id, "content": "sunny"},
    ]
    assert litellm.completion(messages=messages, tools=[TOOL], max_tokens=16, **to).choices


def test_json_of_a_schema(to: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=QUESTION, max_tokens=32, response_format=form, **to)
    assert json.loads(answer.choices[0].message.content) in ({"n": 1}, {"n": 2})


def test_text_completions_and_logprobs(to: dict[str, Any]) -> None:
    text = litellm.text_completion(
        prompt="One, two, three,", max_tokens=4, **to | {"model": f"text-completion-openai/{MODEL}"}
    )
    assert "four" in text.choices[0].text
    answer = litellm.completion(messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=2, **to)
    assert len(answer.choices[0].logprobs.content) == 4


def test_errors_are_the_ones_that_litellm_knows(to: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=QUESTION, max_tokens=4, **to | {"temperature": 3})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=QUESTION, **to | {"model": "openai/other"})


def test_embeddings(embedding_url: str) -> None:
    made = litellm.embedding(
        model=f"openai/{MODEL}", input=["a cat", "tax law"], api_base=embedding_url, api_key="none", num_retries=0
    )
    assert [item["index"] for item in made.data] == [0, 1]
    assert len(made.data[0]["embedding"]) == 576
    assert made.usage.prompt_tokens > 0
