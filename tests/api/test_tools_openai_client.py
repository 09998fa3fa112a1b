"""OpenAI's own client against a real worker front whose engine says a given text: its typed objects, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall as Call
from pydantic import BaseModel, Field

from broker.memory import MemoryHub
from tests.api.conftest import connected
from tests.front import tokenizers
from tests.front.fake_engine import FakeEngine
from workers.front.text import TextProcessor
from workers.front.worker import Worker

TEMPLATE = (
    "{{ tools | tojson }}<tool_call>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}{% endfor %}<think>"
)
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
QUESTION: Any = [{"role": "user", "content": "Is it sunny?"}]
ARGUMENTS = ['{"city": "Paris 🦀"}', '{"city": "Rome"}']
CALLS = "\n".join(f'<tool_call>\n{{"name": "weather", "arguments": {each}}}\n</tool_call>' for each in ARGUMENTS)
SAYS = f"I look.\n</think>\n\nLet me see.\n{CALLS}"

Says = Callable[[str], AbstractAsyncContextManager[FakeEngine]]


@pytest.fixture
def worker_says(hub: MemoryHub) -> Says:
    """A worker of the model `m` that says a text, for the duration of a block."""

    @asynccontextmanager
    async def says(text: str) -> AsyncIterator[FakeEngine]:
        tokenizer = tokenizers.byte_level(TEMPLATE)
        tokens = [*tokenizer.backend_tokenizer.encode(text).ids, tokenizer.eos_token_id]
        engine = FakeEngine(
            lambda _, position: tokens[min(position, len(tokens) - 1)],
            vocab_size=len(tokenizer),
            eos=tokenizer.eos_token_id,
            max_model_len=4096,
        )
        async with connected(hub) as broker:
            worker = Worker(broker, engine, TextProcessor(tokenizer), model="m", worker_id="w")
            await worker.start()
            tasks = [asyncio.create_task(worker.run()), asyncio.create_task(_play(engine))]
            yield engine
            tasks[1].cancel()
            await worker.drain(1.0)
            await tasks[0]

    return says


async def _play(engine: FakeEngine) -> None:
    while True:
        await engine.until_running(1)
        await engine.play()


@pytest.fixture
async def client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


def checked(message: Any) -> list[Call]:
    """The calls of a whole message, which is as it should be."""
    assert message.content == "Let me see."
    assert message.reasoning_content == "I look."
    calls: list[Call] = message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "weather", arguments) for arguments in ARGUMENTS
    ]
    assert len({call.id for call in calls}) == 2
    return calls


async def test_whole(client: openai.AsyncOpenAI, worker_says: Says) -> None:
    async with worker_says(SAYS):
        answer = await client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    checked(answer.choices[0].message)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


async def test_streamed(client: openai.AsyncOpenAI, worker_says: Says) -> None:
    """As clients do it: by index, id and name once, arguments in pieces."""
    content = reasoning = ""
    ids: dict[int, str | None] = {}
    arguments: dict[int, str] = {}
    finish = None
    async with worker_says(SAYS):
        stream = await client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL], stream=True)
        async for chunk in stream:
            (choice,) = chunk.choices
            finish = choice.finish_reason or finish
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", "")
            for piece in choice.delta.tool_calls or []:
                assert piece.function is not None
                if piece.index not in ids:
                    assert (piece.type, piece.function.name) == ("function", "weather")
                    ids[piece.index] = piece.id
                else:
                    assert (piece.id, piece.type, piece.function.name) == (None, None, None)
                arguments[piece.index] = arguments.get(piece.index, "") + (piece.function.arguments or "")
    assert (content, reasoning, finish) == ("Let me see.", "I look.", "tool_calls")
    assert [arguments[index] for index in sorted(arguments)] == ARGUMENTS
    assert len(set(ids.values())) == 2


async def test_the_clients_own_accumulation(client: openai.AsyncOpenAI, worker_says: Says) -> None:
    async with (
        worker_says(SAYS),
        client.chat.completions.stream(model="m", messages=QUESTION, tools=[TOOL]) as stream,
    ):
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
        answer = await stream.get_final_completion()
    assert [(event.name, event.arguments) for event in done] == [("weather", arguments) for arguments in ARGUMENTS]
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ARGUMENTS


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(description="its name")


async def test_parsed_arguments(client: openai.AsyncOpenAI, worker_says: Says) -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")
    async with worker_says(SAYS):
        answer = await client.chat.completions.parse(model="m", messages=QUESTION, tools=[tool])
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in calls] == [Weather(city="Paris 🦀"), Weather(city="Rome")]


async def test_a_conversation_goes_on_behind_its_calls(client: openai.AsyncOpenAI, worker_says: Says) -> None:
    async with worker_says(SAYS) as engine:
        first = await client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL])
        message: Any = first.choices[0].message
        answers: list[Any] = [
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in checked(message)
        ]
        response = await client.chat.completions.with_raw_response.create(
            model="m", messages=[*QUESTION, message, *answers], tools=[TOOL]
        )
    assert "x-headrace-ignored-params" not in response.headers
    said = tokenizers.byte_level().decode(engine.added[1].prompt_token_ids)
    assert "<|assistant|>Let me see.Paris 🦀Rome<|tool|>sunny<|tool|>sunny" in said


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_have_calls_of_their_own(
    client: openai.AsyncOpenAI, worker_says: Says, stream: bool
) -> None:
    ids: set[str | None] = set()
    async with worker_says(SAYS):
        asked: Any = {"model": "m", "messages": QUESTION, "tools": [TOOL], "n": 2}
        if stream:
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                ids |= {call.id for choice in chunk.choices for call in choice.delta.tool_calls or [] if call.id}
        else:
            answer = await client.chat.completions.create(**asked)
            ids = {call.id for choice in answer.choices for call in checked(choice.message)}
    assert len(ids) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_enforced_is_a_plain_error(
    client: openai.AsyncOpenAI, worker_says: Says, stream: bool
) -> None:
    """Also in a stream: the worker says so before the first token."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "nothing"}}}}}
    async with worker_says(SAYS):
        asked: Any = {"model": "m", "messages": QUESTION, "tools": [tool], "tool_choice": "required"}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked, stream=stream)
    assert caught.value.param == "tools"


async def test_the_sync_client(server: str, worker_says: Says) -> None:
    def ask() -> list[Any]:
        with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL]).choices[0].message
            with client.chat.completions.stream(model="m", messages=QUESTION, tools=[TOOL]) as stream:
                streamed = stream.get_final_completion().choices[0].message
        return [whole, streamed]

    async with worker_says(SAYS):
        whole, streamed = await asyncio.to_thread(ask)
    checked(whole)
    assert [call.function.arguments for call in streamed.tool_calls] == ARGUMENTS
