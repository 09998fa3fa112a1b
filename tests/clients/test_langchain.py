"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.clients.conftest import MODEL

QUESTION = "What is the capital of France?"


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


class Person(BaseModel):
    name: str
    age: int


def chat(url: str, **settings: Any) -> ChatOpenAI:
    given = {"temperature": 0, "max_tokens": 32, "max_retries": 0} | settings
    return ChatOpenAI(base_url=url, api_key="none", model=MODEL, **given)


def test_a_question(url: str) -> None:
    answer = chat(url).invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_stream_says_the_same(url: str) -> None:
    model = chat(url, stream_usage=True)
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 3
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    answer = model.invoke(QUESTION)
    assert (whole.content, whole.usage_metadata) == (answer.content, answer.usage_metadata | whole.usage_metadata)


async def test_the_same_without_threads(url: str) -> None:
    model = chat(url)
    answers = await model.abatch([QUESTION, "What is 1 + 1?"])
    assert "Paris" in str(answers[0].content)
    assert "".join([str(chunk.content) async for chunk in model.astream(QUESTION)]) == answers[0].content


def test_log_probabilities(url: str) -> None:
    answer = chat(url, logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    said = "".join(position["token"] for position in content)
    assert said == f"{answer.content}<|im_end|>"  # the token that ended it counts, too
    assert all(len(position["top_logprobs"]) == 2 for position in content)


def test_a_tool_is_called_and_answers(url: str) -> None:
    model = chat(url, max_tokens=64)
    calling = model.bind_tools([weather], tool_choice="any")
    asked = calling.invoke("What is the weather in Rome?")
    assert isinstance(asked, AIMessage)
    (call,) = asked.tool_calls[:1]
    assert (call["name"], set(call["args"])) == ("weather", {"city"})
    streamed = None
    for chunk in calling.stream("What is the weather in Rome?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(made["name"], made["args"]) for made in streamed.tool_calls] == [
        (made["name"], made["args"]) for made in asked.tool_calls
    ]
    results = [ToolMessage(weather.invoke(made["args"]), tool_call_id=made["id"]) for made in asked.tool_calls]
    said = model.bind_tools([weather]).invoke([HumanMessage("What is the weather in Rome?"), asked, *results])
    assert isinstance(said, AIMessage)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_answers_of_a_given_form(url: str, method: Any) -> None:
    made = chat(url, max_tokens=64).with_structured_output(Person, method=method).invoke("Ada is 36 years old.")
    assert isinstance(made, Person)


def test_extensions_go_through(url: str) -> None:
    model = chat(url, extra_body={"top_k": 1, "stop_token_ids": [2], "min_tokens": 1}, temperature=1, seed=3)
    assert model.invoke(QUESTION).content == chat(url).invoke(QUESTION).content


def test_embeddings(embedding_url: str) -> None:
    # As text: token ids would be those of OpenAI's tokenizer, which it would fetch from elsewhere.
    embeddings = OpenAIEmbeddings(
        base_url=embedding_url, api_key="none", model=MODEL, check_embedding_ctx_length=False, max_retries=0
    )
    vectors = embeddings.embed_documents(["a cat", "tax law"])
    assert [len(vector) for vector in vectors] == [576, 576]
    assert embeddings.embed_query("a cat") == pytest.approx(vectors[0], abs=2e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=2e-2)
