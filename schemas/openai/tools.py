"""Tools of a chat request, the calls in its messages, and the calls in answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_TOOLS
from schemas.messages import ToolChoice as Choice
from schemas.openai.common import StrictModel
from schemas.openai.structured import StructuredRequest

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class FunctionDefinition(StrictModel):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(StrictModel):
    type: Literal["function"]
    function: FunctionDefinition

    def plain(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        given = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": given}


class NamedFunction(StrictModel):
    name: str


class NamedChoice(StrictModel):
    """The one function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(StrictModel):
    name: str
    arguments: str


class MessageToolCall(StrictModel):
    """A call in an assistant's message; its arguments are JSON text."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


class ToolRequest(StructuredRequest):
    """What a chat request says of tools and reasoning."""

    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> ToolRequest:
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise PydanticCustomError("invalid_value", "Two tools have the same name", {"param": "tools"})
        return self

    @model_validator(mode="after")
    def _choice_has_tools(self) -> ToolRequest:
        names = {tool.function.name for tool in self.tools or []}
        if self.choice == "required" and not names:
            message = "tool_choice is only allowed when tools are given"
            raise PydanticCustomError("invalid_value", message, {"param": "tool_choice"})
        if self.named is not None and self.named not in names:
            message = "tool_choice names a function that is not among the tools"
            raise PydanticCustomError("invalid_value", message, {"param": "tool_choice"})
        return self

    @property
    def choice(self) -> Choice:
        """A named function is required."""
        return "required" if isinstance(self.tool_choice, NamedChoice) else self.tool_choice or "auto"

    @property
    def named(self) -> str | None:
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedChoice) else None

    def template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template. Effort none is for some templates a switch of its own."""
        effort: dict[str, Any] = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        if self.reasoning_effort == "none":
            effort["enable_thinking"] = False
        return effort | (self.chat_template_kwargs or {})

    def ignored_params(self) -> list[str]:
        """Also those of tools, and `strict` where the model is free to call: its arguments are not enforced then."""
        names = super().ignored_params()
        for index, tool in enumerate(self.tools or []):
            names += [f"tools[{index}].{name}" for name in tool.ignored_params()]
            if tool.function.strict and self.choice != "required":
                names.append(f"tools[{index}].function.strict")
        return names


class FunctionCallBody(BaseModel):
    name: str
    arguments: str


class ToolCallBody(BaseModel):
    """A call in a whole answer."""

    id: str
    type: Literal["function"]
    function: FunctionCallBody


class FunctionCallDelta(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """A piece of a call: `id`, `type` and the name come with the first."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta
