"""A model that has to call a tool calls it, in the right form, whatever it would have said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.service import MODEL, Service

pytestmark = pytest.mark.model
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": TOOLS,
    "max_tokens": 80,
    "parallel_tool_calls": False,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    for seed in range(3):
        choice = client.chat.completions.create(**ASKED, temperature=1, seed=seed).choices[0]
        calls: Any = choice.message.tool_calls
        assert (choice.finish_reason, len(calls), choice.message.content) == ("tool_calls", 1, None)
        arguments = json.loads(calls[0].function.arguments)
        assert calls[0].function.name == "weather"
        assert set(arguments) == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")


def test_streamed_as_whole(client: openai.OpenAI) -> None:
    asked = {**ASKED, "temperature": 0, "tool_choice": "required"}
    whole: Any = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        streamed: Any = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in whole]
    assert [call.function.name for call in streamed] == [call.function.name for call in whole]
