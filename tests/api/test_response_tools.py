"""Functions in /v1/responses: OpenAI's own client against a real worker front whose engine says a given text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.api.test_tools_openai_client import ARGUMENTS, CALLS, SAYS, Says, worker_says  # noqa: F401

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
async def client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


def calls_of(response: Any) -> list[tuple[str, str]]:
    return [(item.name, item.arguments) for item in response.output if item.type == "function_call"]


CALLED = [("weather", arguments) for arguments in ARGUMENTS]


async def test_calls_and_their_outputs(client: openai.AsyncOpenAI, worker_says: Says) -> None:  # noqa: F811
    async with worker_says(SAYS):
        asked = await client.responses.create(model="m", input="Is it sunny?", tools=[TOOL])
        assert (asked.status, asked.output_text, calls_of(asked)) == ("completed", "Let me see.", CALLED)
        assert [item.type for item in asked.output] == ["reasoning", "message", "function_call", "function_call"]
        assert [tool.name for tool in asked.tools] == ["weather"]  # type: ignore[union-attr]
        assert await client.responses.retrieve(asked.id) == asked
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            for item in asked.output
            if item.type == "function_call"
        ]
        answered = await client.responses.create(model="m", input=outputs, previous_response_id=asked.id, tools=[TOOL])
        echoed: Any = [{"role": "user", "content": "Is it sunny?"}, *[item.model_dump() for item in asked.output]]
        again = await client.responses.create(model="m", input=[*echoed, *outputs], tools=[TOOL])
        assert answered.usage is not None
        assert again.usage is not None
        assert asked.usage is not None
        assert answered.usage.input_tokens == again.usage.input_tokens > asked.usage.input_tokens
        items = [item.type async for item in client.responses.input_items.list(answered.id)]
        assert items == ["function_call_output"] * 2


@pytest.mark.parametrize("says", [SAYS, f"</think>{CALLS}"])
async def test_a_stream_and_the_same_told_again(
    client: openai.AsyncOpenAI,
    worker_says: Says,  # noqa: F811
    says: str,
) -> None:
    async with worker_says(says):
        stream = await client.responses.create(model="m", input="Is it sunny?", tools=[TOOL], stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        whole = events[-1].response  # type: ignore[union-attr]
        assert calls_of(whole) == CALLED
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert [(event.name, event.arguments) for event in done] == CALLED
        added = [event.output_index for event in events if event.type == "response.output_item.added"]
        assert added == list(range(len(whole.output)))
        again = [event async for event in await client.responses.retrieve(whole.id, stream=True)]
        assert again == events
        async with client.responses.stream(model="m", input="Is it sunny?", tools=[TOOL]) as helped:
            assert calls_of(await helped.get_final_response()) == CALLED


async def test_a_named_function_is_called(client: openai.AsyncOpenAI, worker_says: Says) -> None:  # noqa: F811
    async with worker_says(SAYS) as engine:
        choice: Any = {"type": "function", "name": "weather"}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(
                model="m", input="x", tools=[TOOL], tool_choice={"type": "function", "name": "other"}
            )
        assert refused.value.param == "tool_choice"
        made = await client.responses.create(model="m", input="x", tools=[TOOL], tool_choice=choice, background=True)
        await engine.until_running(1)
        assert made.tool_choice.model_dump() == choice  # type: ignore[union-attr]
        await client.responses.cancel(made.id)
