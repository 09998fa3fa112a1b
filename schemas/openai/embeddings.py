"""/v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from schemas.messages import MAX_ID_LENGTH, MAX_INPUTS, MAX_PRIORITY
from schemas.openai.common import StrictModel, invalid, invalid_type, is_token_ids

Input = str | list[int]


def _inputs(value: Any) -> list[Input]:
    """All four forms (string, strings, token ids, lists of token ids) as a list of inputs."""
    if isinstance(value, str) or is_token_ids(value):
        value = [value]
    if not isinstance(value, list):
        raise invalid_type("Input should be a string, a list of strings, a list of token ids, or a list of such lists")
    if not value:
        raise invalid("The list of inputs must not be empty")
    if len(value) > MAX_INPUTS:
        raise invalid(f"At most {MAX_INPUTS} inputs are allowed in one request")
    if (empty := next((index for index, one in enumerate(value) if one in ("", [])), None)) is not None:
        raise invalid(f"Input {empty} is empty")
    if not (all(isinstance(one, str) for one in value) or all(is_token_ids(one) for one in value)):
        raise invalid_type("Every input should be a string, or every input a list of token ids")
    return value


def _keeps_something(value: int | None) -> int | None:
    if value == 0:
        raise invalid("This is how many tokens of each input are kept, or -1 for as many as fit")
    return value


class EmbeddingRequest(StrictModel):
    """`input` is always a list of inputs once validated. Beyond OpenAI's: `normalize` (without it what the model's files
    say), `truncate_prompt_tokens`, `add_special_tokens`, `priority`, `cache_salt`, `request_id`."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
    input: Annotated[
        list[Input], BeforeValidator(_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1), AfterValidator(_keeps_something)] = None
    add_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,120}$")] | None = None


class EmbeddingObject(BaseModel):
    """The vector, or with `encoding_format` base64 its little-endian float32 values."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingObject]
    usage: EmbeddingUsage
