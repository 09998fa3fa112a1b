"""From the body of a response to what is stored of it, and to its Job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from api.errors import ApiError, from_validation, unsupported_parameter
from api.response_api.items import OUTPUT_PREFIX, output_items
from api.store import ResponseRecord
from schemas.messages import Job, Result, SamplingParams
from schemas.openai.responses import ResponseNamedChoice, ResponseRequest, TextConfig, unsupported_param

RESPONSES = "/v1/responses"
PREFIX = "resp_"

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "ignore_eos",
)
_SHOWN = ("model", "instructions", "max_output_tokens", "prompt_cache_key", "safety_identifier", "user")


def parse_response(body: Any) -> ResponseRequest:
    """Validate a decoded JSON body. Raises ApiError 400 that names the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body should be a JSON object.", code="invalid_type")
    if (name := unsupported_param(body)) is not None:
        raise unsupported_parameter(name)
    try:
        request = ResponseRequest.model_validate(body)
        request.tool_request()
        return request
    except ValidationError as error:
        raise from_validation(error) from None


def new_record(
    request: ResponseRequest,
    response_id: str,
    owner: str,
    *,
    created: float,
    deadline: float,
    defaults: Mapping[str, float],
) -> ResponseRecord:
    """What is stored of a new response. It shows the model's `defaults` where the request leaves them."""
    job_id = response_id.removeprefix(PREFIX)
    return ResponseRecord(
        id=response_id,
        owner=owner,
        job_id=job_id,
        previous_id=request.previous_response_id,
        request=_shown(request, defaults),
        input=[item.item(f"{OUTPUT_PREFIX}{job_id}_{index}") for index, item in enumerate(request.input)],
        created_at=created,
        deadline=deadline,
    )


def _shown(request: ResponseRequest, defaults: Mapping[str, float]) -> dict[str, Any]:
    shown = {name: getattr(request, name) for name in _SHOWN}
    return shown | {
        "temperature": defaults.get("temperature", 1.0) if request.temperature is None else request.temperature,
        "top_p": defaults.get("top_p", 1.0) if request.top_p is None else request.top_p,
        "metadata": request.metadata or {},
        "text": (request.text or TextConfig()).shown(),
        "background": bool(request.background),
        "store": request.store is not False,
        "tools": [tool.model_dump() for tool in request.tools or []],
        "tool_choice": _shown_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "reasoning": {"effort": request.effort, "summary": None},
    }


def _shown_choice(choice: str | ResponseNamedChoice | None) -> Any:
    return choice.model_dump() if isinstance(choice, ResponseNamedChoice) else choice or "auto"


def job_of(
    request: ResponseRequest, record: ResponseRecord, history: Sequence[tuple[ResponseRecord, Result | None]]
) -> Job:
    """The Job of a response that comes after `history`. Without a seed it follows from the job's id: the same response
    published again is the same job."""
    given = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    grammar = None if request.text is None else request.text.format.grammar()
    tools = request.tool_request()
    return Job(
        id=record.job_id,
        model=request.model,
        messages=_messages(request.instructions, record, history),
        sampling=SamplingParams(seed=request.seed, max_tokens=request.max_output_tokens, grammar=grammar, **given),
        template_kwargs=tools.template_kwargs(),
        tools=[tool.plain() for tool in tools.tools or []],
        tool_choice=tools.choice,
        tool_name=tools.named,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        stream=bool(request.stream or request.background),
        store_output=bool(record.request["store"]),
        owner=record.owner,
        created=record.created_at,
        deadline=record.deadline,
    )


def _messages(
    instructions: str | None, record: ResponseRecord, history: Sequence[tuple[ResponseRecord, Result | None]]
) -> list[dict[str, Any]]:
    """The conversation as chat templates read it. Instructions hold for one response: earlier ones are not repeated."""
    messages: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for earlier, result in history:
        _say(messages, earlier.input)
        for choice in [] if result is None else result.choices:
            _say(messages, output_items(earlier, choice))
    _say(messages, record.input)
    return messages


def _say(messages: list[dict[str, Any]], items: Sequence[dict[str, Any]]) -> None:
    """Add items to the conversation. Reasoning and calls are parts of a message of the assistant's, that which follows and
    that before."""
    reasoning: dict[str, str] = {}
    for item in items:
        if item["type"] == "reasoning":
            reasoning = {"reasoning_content": "\n".join(part["text"] for part in item["content"])}
        elif item["type"] == "function_call":
            if reasoning or not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""} | reasoning)
                reasoning = {}
            _add_call(messages[-1], item)
        elif item["type"] == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            said = {"role": role, "content": "\n".join(part["text"] for part in item["content"])}
            messages.append(said | (reasoning if role == "assistant" else {}))
            reasoning = {}


def _add_call(message: dict[str, Any], item: dict[str, Any]) -> None:
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    message["tool_calls"] = [*message.get("tool_calls", []), call]
