"""Reasoning in /v1/responses: an item of the output, whole, streamed, told again and given back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from api.response_api.request import job_of, new_record, parse_response
from schemas.messages import Choice, Job, Result
from tests.api.test_tools_openai_client import Says, worker_says  # noqa: F401

THOUGHT, ANSWER = "I look\nout of it.", "It is sunny."
SAYS = f"{THOUGHT}\n</think>\n\n{ANSWER}"


@pytest.fixture
async def client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


def thoughts(response: Any) -> list[str]:
    return [item.content[0].text for item in response.output if item.type == "reasoning"]


async def test_it_comes_before_the_message(client: openai.AsyncOpenAI, worker_says: Says) -> None:  # noqa: F811
    async with worker_says(SAYS):
        made = await client.responses.create(model="m", input="Is it sunny?")
        assert [item.type for item in made.output] == ["reasoning", "message"]
        assert (thoughts(made), made.output_text.strip()) == ([THOUGHT], ANSWER)
        assert made.usage is not None
        assert made.usage.output_tokens_details.reasoning_tokens > 0
        assert await client.responses.retrieve(made.id) == made


async def test_a_stream_and_the_same_told_again(client: openai.AsyncOpenAI, worker_says: Says) -> None:  # noqa: F811
    async with worker_says(SAYS):
        events = [event async for event in await client.responses.create(model="m", input="x", stream=True)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert len(deltas) > 1
        assert "".join(deltas) == THOUGHT
        (done,) = [event for event in events if event.type == "response.reasoning_text.done"]
        assert (done.text, done.output_index) == (THOUGHT, 0)
        added = [event for event in events if event.type == "response.output_item.added"]
        assert [(event.item.type, event.output_index) for event in added] == [("reasoning", 0), ("message", 1)]
        whole = events[-1].response  # type: ignore[union-attr]
        ended = [event.item for event in events if event.type == "response.output_item.done"]
        assert ended == whole.output
        again = [event async for event in await client.responses.retrieve(whole.id, stream=True)]
        assert again == events
        for after in (2, 4, len(events) - 3):
            rest = await client.responses.retrieve(whole.id, stream=True, starting_after=after)
            assert [event async for event in rest] == events[after + 1 :]
        async with client.responses.stream(model="m", input="x") as helped:
            assert (await helped.get_final_response()).output_text.strip() == ANSWER


async def test_reasoning_that_is_cut_off_is_all_there_is(client: openai.AsyncOpenAI, worker_says: Says) -> None:  # noqa: F811
    async with worker_says(SAYS):
        made: Any = await client.responses.create(model="m", input="x", max_output_tokens=4)
        assert (made.status, [(item.type, item.status) for item in made.output]) == (
            "incomplete",
            [("reasoning", "incomplete")],
        )
        stream = await client.responses.create(model="m", input="x", max_output_tokens=4, stream=True)
        kinds = [event.type async for event in stream]
        assert kinds[-4:] == [
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]


def job(history: list[Any] = [], **fields: Any) -> Job:  # noqa: B006
    wanted = parse_response({"model": "m", "input": "x", **fields})
    return job_of(wanted, new_record(wanted, "resp_1", "", created=0, deadline=9, defaults={}), history)


def test_it_is_handed_to_the_template_with_the_message_that_follows() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    said = {"role": "assistant", "content": "Yes."}
    messages = job(input=[{"role": "user", "content": "q"}, thought, call, result, thought, said]).messages
    assert messages is not None
    assert [(message["role"], message.get("reasoning_content")) for message in messages] == [
        ("user", None),
        ("assistant", "hm"),
        ("tool", None),
        ("assistant", "hm"),
    ]
    assert messages[1]["tool_calls"][0]["id"] == "c"


def test_an_earlier_responses_reasoning_is_handed_on() -> None:
    wanted = parse_response({"model": "m", "input": "q"})
    record = new_record(wanted, "resp_0", "", created=0, deadline=9, defaults={})
    choice = Choice(index=0, text="Yes.", token_ids=[1], finish_reason="stop", reasoning="hm")
    messages = job([(record, Result(job="0", model="m", outcome="completed", choices=[choice]))]).messages
    assert messages is not None
    assert [message.get("reasoning_content") for message in messages] == [None, "hm", None]


def test_effort_goes_to_the_template() -> None:
    assert job(reasoning={"effort": "low", "summary": "auto"}).template_kwargs == {"reasoning_effort": "low"}
    assert job(reasoning={"effort": "none"}).template_kwargs["enable_thinking"] is False
    assert job().template_kwargs == {}


async def test_effort_is_shown(http: httpx.AsyncClient) -> None:
    body = {"model": "stub", "input": "a", "reasoning": {"effort": "low"}}
    assert (await http.post("/v1/responses", json=body)).json()["reasoning"] == {"effort": "low", "summary": None}
    part = {"role": "user", "content": [{"type": "reasoning_text", "text": "x"}]}
    refused = await http.post("/v1/responses", json={"model": "stub", "input": [part]})
    assert refused.json()["error"]["param"] == "input[0].content[0].type"
