"""/v1/responses: request, response, input items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_GRAMMAR_LENGTH, MAX_ID_LENGTH, MAX_TOOLS, Grammar, ToolChoice
from schemas.openai.common import Metadata, SamplingRequest, StrictModel, invalid_type
from schemas.openai.structured import ANY_OBJECT
from schemas.openai.tools import FunctionDefinition, ReasoningEffort, ToolRequest
from schemas.openai.unsupported import first_unsupported

Role = Literal["system", "developer", "user", "assistant"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
TEXT_PARTS = ("input_text", "output_text", "text")
REASONING_PARTS = ("reasoning_text", "text")

_NOTHING: tuple[Any, ...] = ()

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "max_tool_calls": _NOTHING,
    "conversation": _NOTHING,
    "prompt": _NOTHING,
    "include": ([],),
    "top_logprobs": (0,),
    "context_management": ([],),
    "moderation": _NOTHING,
    "background_options": _NOTHING,
    "truncation": ("disabled",),
    "n": (1,),
}
"""What would change the answer and is not served, with the values that ask for nothing."""


class ContentPart(StrictModel):
    """A piece of text, said to the model or by it, or thought."""

    type: Literal["input_text", "output_text", "text", "reasoning_text"]
    text: str


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise invalid_type("Input should be a string or a list of content parts")


_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class InputItem(StrictModel):
    """A message, a call that the model made, what its function returned, or what it thought. Texts are lists of parts once
    validated."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)] | None = None
    role: Role | None = None
    content: Annotated[list[ContentPart] | None, BeforeValidator(_parts)] = None
    call_id: Annotated[str, Field(min_length=1)] | None = None
    name: str | None = None
    arguments: str | None = None
    output: Annotated[list[ContentPart] | None, BeforeValidator(_parts)] = None
    status: str | None = None
    phase: str | None = None
    summary: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> InputItem:
        for name in _NEEDED[self.type]:
            if getattr(self, name) is None:
                raise PydanticCustomError("missing", "Field required", {"param": name})
        return self

    def item(self, default_id: str) -> dict[str, Any]:
        """As it is stored and listed."""
        head = {"id": self.id or default_id, "type": self.type, "status": "completed"}
        if self.type == "function_call":
            return head | {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        if self.type == "function_call_output":
            return head | {"call_id": self.call_id, "output": "\n".join(part.text for part in self.output or [])}
        if self.type == "reasoning":
            thought = [{"type": "reasoning_text", "text": part.text} for part in self.content or []]
            return head | {"summary": [], "content": thought, "encrypted_content": None}
        kind = "output_text" if self.role == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": []} if self.role == "assistant" else {}
        content = [{"type": kind, "text": part.text} | extra for part in self.content or []]
        return head | {"role": self.role, "content": content}


def _messages(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return value
    raise invalid_type("Input should be a string or a list of items")


class TextFormat(StrictModel):
    """The schema is always enforced as a whole, `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_is_given(self) -> TextFormat:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if self.type == "json_schema" and value is None:
                raise PydanticCustomError("missing", "Field required", {"param": name})
        if len(self._text()) > MAX_GRAMMAR_LENGTH:
            message = f"At most {MAX_GRAMMAR_LENGTH} characters are allowed"
            raise PydanticCustomError("invalid_value", message, {"param": "schema"})
        return self

    def grammar(self) -> Grammar | None:
        """What the output must match; None for plain text."""
        if self.type == "text":
            return None
        return Grammar(kind="json", value=self._text(), param="text.format")

    def _text(self) -> str:
        schema = self.schema_ if self.type == "json_schema" else ANY_OBJECT
        return msgspec.json.encode(schema).decode()


class TextConfig(StrictModel):
    format: TextFormat = TextFormat(type="text")

    def shown(self) -> dict[str, Any]:
        """As the response object has it."""
        return self.model_dump(by_alias=True, exclude_none=True, include={"format"})


class ResponseTool(FunctionDefinition):
    type: Literal["function"]


class ResponseNamedChoice(StrictModel):
    """The one function that has to be called."""

    type: Literal["function"]
    name: str


class Reasoning(StrictModel):
    """`effort` goes to the chat template. Reasoning comes in full: there are no summaries."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto"] | None = None


class StreamOptions(StrictModel):
    include_obfuscation: bool | None = None


class ResponseRequest(SamplingRequest):
    """`input` is a list of messages once validated. Sampling parameters beyond OpenAI's are as at the other endpoints."""

    input: Annotated[
        list[InputItem],
        BeforeValidator(_messages, json_schema_input_type=str | list[InputItem]),
        Field(min_length=1),
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | ResponseNamedChoice | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _background_is_stored(self) -> ResponseRequest:
        if self.background and self.store is False:
            message = "A background response is stored: store must not be false"
            raise PydanticCustomError("invalid_value", message, {"param": "background"})
        return self

    def tool_request(self) -> ToolRequest:
        """The tools, the choice among them and the effort as chat has them. Raises pydantic.ValidationError."""
        choice: Any = self.tool_choice
        if isinstance(choice, ResponseNamedChoice):
            choice = {"type": "function", "function": {"name": choice.name}}
        tools = [
            {"type": "function", "function": tool.model_dump(include=set(FunctionDefinition.model_fields))}
            for tool in self.tools or []
        ]
        given = {"tools": tools, "tool_choice": choice, "reasoning_effort": self.effort}
        return ToolRequest.model_validate({"model": self.model} | given)

    @property
    def effort(self) -> ReasoningEffort | None:
        return None if self.reasoning is None else self.reasoning.effort

    def ignored_params(self) -> list[str]:
        """Names of the fields given that mean nothing here, without those whose value asks for nothing."""
        return [name for name in super().ignored_params() if name not in UNSUPPORTED]


def unsupported_param(body: dict[str, Any]) -> str | None:
    """The first parameter of a decoded body that asks for what is not served, by its path."""
    if (name := first_unsupported(body, UNSUPPORTED)) is not None:
        return name
    if (found := _unsupported_tools(body)) is not None:
        return found
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("summary") not in (None, "auto"):
        return "reasoning.summary"
    text = body.get("text")
    if isinstance(text, dict) and (found := _unsupported_text(text)) is not None:
        return found
    items = body.get("input")
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict) and (found := _unsupported_item(item, f"input[{index}]")) is not None:
            return found
    return None


def _unsupported_tools(body: dict[str, Any]) -> str | None:
    """Tools that are no functions of the client's."""
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "function":
            return f"tools[{index}].type"
    choice = body.get("tool_choice")
    is_other = isinstance(choice, dict) and isinstance(choice.get("type"), str) and choice["type"] != "function"
    return "tool_choice.type" if is_other else None


def _unsupported_text(text: dict[str, Any]) -> str | None:
    return "text.verbosity" if text.get("verbosity") not in (None, "medium") else None


def _unsupported_item(item: dict[str, Any], where: str) -> str | None:
    """Items other than messages, calls, their outputs and reasoning, and content other than text."""
    if isinstance(item.get("type"), str) and item["type"] not in _NEEDED:
        return f"{where}.type"
    allowed = REASONING_PARTS if item.get("type") == "reasoning" else TEXT_PARTS
    for name in ("content", "output"):
        parts = item.get(name)
        for index, part in enumerate(parts if isinstance(parts, list) else []):
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in allowed:
                return f"{where}.{name}[{index}].type"
    return None


class ResponseErrorBody(BaseModel):
    code: str
    message: str
    type: str
    param: str | None


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens", "content_filter"]


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class MessagePart(BaseModel):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None


class MessageItem(BaseModel):
    id: str
    type: Literal["message"]
    role: Role
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[MessagePart]


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(BaseModel):
    id: str
    type: Literal["reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: None = None


class FunctionCallItem(BaseModel):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


class FunctionCallOutputItem(BaseModel):
    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str
    status: Literal["in_progress", "completed", "incomplete"]


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseErrorBody | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ReasoningItem | MessageItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[Any]
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: bool


class InputItemList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ReasoningItem | MessageItem | FunctionCallItem | FunctionCallOutputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
