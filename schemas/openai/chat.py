"""/v1/chat/completions: request, response, chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_TEMPLATE_LENGTH
from schemas.openai.common import StrictModel, TopLogprobs, invalid_type
from schemas.openai.prompt_logprobs import PromptLogprob
from schemas.openai.tools import MessageToolCall, ToolCallBody, ToolCallDelta, ToolRequest
from schemas.openai.usage import UsageBody

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(StrictModel):
    """One part of a message's content. Only text is served; the type is checked apart, to name it as unsupported."""

    type: Literal["text"]
    text: str


def _content_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise invalid_type("Input should be a string or a list of content parts")


class ChatMessage(StrictModel):
    """`content` is a list of parts once validated."""

    role: Role
    content: Annotated[
        list[TextPart] | None, BeforeValidator(_content_parts, json_schema_input_type=str | list[TextPart] | None)
    ] = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _answers_a_call(self) -> ChatMessage:
        if self.role == "tool" and not self.tool_call_id:
            raise PydanticCustomError("missing", "Field required", {"param": "tool_call_id"})
        if self.role != "assistant" and self.tool_calls:
            raise PydanticCustomError("invalid_value", "Only an assistant calls tools", {"param": "tool_calls"})
        return self

    @model_validator(mode="after")
    def _content_is_given(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing", "Field required", {"param": "content"})
        return self

    def plain(self) -> dict[str, Any]:
        """The message as chat templates read it: text parts joined by newlines, `developer` as `system`."""
        text = "\n".join(part.text for part in self.content or [])
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return message | {name: value for name, value in self._more() if value}

    def _more(self) -> Iterator[tuple[str, Any]]:
        yield "name", self.name
        if self.role == "tool":
            yield "tool_call_id", self.tool_call_id
        if self.role == "assistant":
            yield "tool_calls", [call.plain() for call in self.tool_calls or []]
            yield "reasoning_content", self.reasoning_content or self.reasoning


class ChatRequest(ToolRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    chat_template: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_LENGTH)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "max_tokens and max_completion_tokens are two names of one limit and must not differ"
            raise PydanticCustomError("invalid_value", message, {"param": "max_tokens"})
        return self

    @model_validator(mode="after")
    def _ends_in_one_way(self) -> ChatRequest:
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise PydanticCustomError("invalid_value", message, {"param": "continue_final_message"})
        return self

    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template gets beside messages and tools."""
        given = super().template_kwargs()
        if self.documents:
            given = given | {"documents": self.documents}
        if self.add_generation_prompt is not None:
            given = given | {"add_generation_prompt": self.add_generation_prompt}
        if self.continue_final_message:
            given = given | {"continue_final_message": True, "add_generation_prompt": False}
        return given

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs is only allowed when logprobs is true"
            raise PydanticCustomError("invalid_value", message, {"param": "top_logprobs"})
        return self

    def ignored_params(self) -> list[str]:
        """Also the unknown fields of messages, without those that are null (clients echo whole responses back)."""
        names = super().ignored_params()
        for index, message in enumerate(self.messages):
            extra = message.model_extra or {}
            names += [f"messages[{index}].{name}" for name, value in extra.items() if value not in (None, [])]
        return names


class ChatLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(ChatLogprob):
    top_logprobs: list[ChatLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob] | None
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallBody] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class ChatCompletion(BaseModel):
    """The whole answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None
