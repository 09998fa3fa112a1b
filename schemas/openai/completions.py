"""/v1/completions: request, response (streamed chunks have the same shape)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_CHOICES
from schemas.openai.common import TokenId, TopLogprobs, invalid, invalid_type, is_token_ids
from schemas.openai.prompt_logprobs import PromptLogprob
from schemas.openai.structured import StructuredRequest
from schemas.openai.usage import UsageBody

MAX_PROMPTS = 2048

Prompt = str | list[int]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
PromptsBody = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
)
"""What a body may have."""


def _prompts(value: Any) -> list[Prompt]:
    """All four forms (string, strings, token ids, lists of token ids) as a list of prompts."""
    if isinstance(value, str) or is_token_ids(value):
        return [value]
    if not isinstance(value, list):
        raise invalid_type("Input should be a string, a list of strings, a list of token ids, or a list of such lists")
    if not value:
        raise invalid("The list of prompts must not be empty")
    if not (all(isinstance(item, str) for item in value) or all(is_token_ids(item) for item in value)):
        raise invalid_type("Every prompt should be a string, or every prompt a non-empty list of token ids")
    if len(value) > MAX_PROMPTS:
        raise invalid(f"At most {MAX_PROMPTS} prompts are allowed in one request")
    return value


class CompletionRequest(StructuredRequest):
    """`prompt` is always a list of prompts once validated."""

    prompt: Annotated[list[Prompt], BeforeValidator(_prompts, json_schema_input_type=PromptsBody)]
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _best_of_is_possible(self) -> CompletionRequest:
        wanted = self.n or 1
        if self.best_of is not None and self.best_of < wanted:
            raise PydanticCustomError("invalid_value", "best_of must not be less than n", {"param": "best_of"})
        if self.stream and (self.best_of or wanted) > wanted:
            message = "best_of above n cannot be streamed: which are best is known at the end only"
            raise PydanticCustomError("invalid_value", message, {"param": "best_of"})
        return self


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class Completion(BaseModel):
    """The whole answer, or one event of a streamed one (with `finish_reason` null until the last of a choice)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None
