"""Tools in chat requests, and tool calls and reasoning in answers, whole and in chunks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.chunks import ChunkWriter
from api.errors import ApiError
from api.event_log import log_of
from api.requests import CHAT_COMPLETIONS, ignored_params, job_from_body, parse_body
from api.responses import body_from_result
from schemas.messages import Choice, Delta, Job, Result, ToolCall, Usage
from schemas.openai.chat import ChatCompletion, ChatCompletionChunk

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g", "strict": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}


def job(**fields: Any) -> Job:
    return job_from_body(CHAT_COMPLETIONS, body(**fields), job_id="j")


def test_tools_reach_the_job_as_they_are() -> None:
    made = job(tools=[TOOL, OTHER], parallel_tool_calls=False)
    assert made.tools == [TOOL, {"type": "function", "function": {"name": "g"}}]
    assert (made.tool_choice, made.tool_name, made.parallel_tool_calls) == ("auto", None, False)
    assert job().parallel_tool_calls


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("none", ("none", None)),
        ("auto", ("auto", None)),
        ("required", ("required", None)),
        ({"type": "function", "function": {"name": "g"}}, ("required", "g")),
    ],
)
def test_tool_choice(choice: Any, wanted: tuple[str, str | None]) -> None:
    made = job(tools=[TOOL, OTHER], tool_choice=choice)
    assert (made.tool_choice, made.tool_name) == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "c"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        job(**fields)
    assert (caught.value.status, str(caught.value.param)[: len(param)]) == (400, param)


def test_calls_and_their_answers_in_the_conversation() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "ok"}]},
    ]
    assert job(messages=messages).messages == [
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "ok", "tool_call_id": "call_1"},
    ]
    assert ignored_params(CHAT_COMPLETIONS, parse_body(CHAT_COMPLETIONS, body(messages=messages))) == []


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            {"reasoning_effort": "high"},
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
    ],
)
def test_reasoning_is_the_templates_affair(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert job(**fields).template_kwargs == wanted


@pytest.mark.parametrize(("choice", "named"), [("auto", ["tools[0].function.strict"]), ("required", [])])
def test_strict_is_named_where_it_is_not_kept(choice: str, named: list[str]) -> None:
    parsed = parse_body(CHAT_COMPLETIONS, body(tools=[OTHER], tool_choice=choice))
    assert ignored_params(CHAT_COMPLETIONS, parsed) == named


CALLS = [ToolCall(index=0, id="a", name="f", arguments="{}"), ToolCall(index=1, id="b", name="g", arguments='{"x": 1}')]
USAGE = Usage(prompt_tokens=1, completion_tokens=9, reasoning_tokens=4)


def result(text: str, reasoning: str = "", calls: list[ToolCall] | None = None) -> Result:
    finish: Any = "tool_calls" if calls else "stop"
    choice = Choice(
        index=0, text=text, token_ids=[1], finish_reason=finish, reasoning=reasoning, tool_calls=calls or []
    )
    return Result(job="j", model="m", outcome="completed", usage=USAGE, choices=[choice])


def test_calls_in_a_whole_answer() -> None:
    answer = body_from_result(CHAT_COMPLETIONS, result("", "because", CALLS))
    ChatCompletion.model_validate(answer)
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "because",
        "reasoning": "because",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}},
        ],
    }
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_a_plain_answer_has_nothing_of_it() -> None:
    message = body_from_result(CHAT_COMPLETIONS, result(""))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "", "refusal": None}


def chunk(**fields: Any) -> Any:
    writer = ChunkWriter(CHAT_COMPLETIONS, "id", 1, "m", include_usage=False)
    event = writer.delta(0, Delta(job="j", epoch=0, offset=0, token_ids=[1], **fields))
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    decoded = msgspec.json.decode(event[6:])
    ChatCompletionChunk.model_validate(decoded)
    return decoded["choices"][0]


def test_pieces_of_calls_in_chunks() -> None:
    first = ToolCall(index=0, id="a", name="f")
    assert chunk(tool_calls=[first])["delta"] == {
        "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    more = chunk(tool_calls=[ToolCall(index=0, arguments='{"\u2028')], finish_reason="tool_calls")
    assert more["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"\u2028'}}]}
    assert more["finish_reason"] == "tool_calls"


def test_reasoning_in_chunks() -> None:
    assert chunk(reasoning="hm")["delta"] == {"reasoning_content": "hm", "reasoning": "hm"}
    assert chunk(reasoning="hm", text="so")["delta"] == {"reasoning_content": "hm", "reasoning": "hm", "content": "so"}
    assert chunk(text="so", finish_reason="stop")["delta"] == {"content": "so"}
    assert chunk(finish_reason="stop")["delta"] == {}


def test_a_stored_answer_is_streamed_with_its_calls() -> None:
    delta = log_of([result("", "because", CALLS)], stream=True).since(0)[0]
    assert isinstance(delta, Delta)
    assert (delta.reasoning, delta.tool_calls) == ("because", CALLS)
