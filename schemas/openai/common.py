"""What the request models of every endpoint share: strict types, generation parameters, unsupported parameters.

Ranges are OpenAI's; the extensions (top_k, min_p, repetition_penalty, ...) follow the names that vLLM gave them. An
absent parameter and null mean the same: the default.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_BAD_WORDS, MAX_CHOICES, MAX_ID_LENGTH, MAX_LOGPROBS, MAX_PRIORITY

MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 1024
MAX_METADATA_PAIRS = 16


def invalid(message: str) -> PydanticCustomError:
    """An `invalid_value` error; `message` reaches the client as it is, so it holds no braces."""
    return PydanticCustomError("invalid_value", message.replace("{", "(").replace("}", ")"))


def invalid_type(message: str) -> PydanticCustomError:
    """An error about the JSON type of a value."""
    return PydanticCustomError("invalid_type", message)


class StrictModel(BaseModel):
    """A request body: no coercion between JSON types; fields that it does not know are kept aside to be named."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    def ignored_params(self) -> list[str]:
        """Names of the fields given that mean nothing here."""
        return list(self.model_extra or {})


def is_token_ids(value: Any) -> bool:
    """Whether `value` is a non-empty list of non-negative integers (booleans are none)."""
    return isinstance(value, list) and set(map(type, value)) == {int} and min(value) >= 0


def _stop_strings(value: Any) -> list[str] | None:
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise invalid_type("Input should be a string or a list of strings")
    if not all(stops):
        raise invalid("A stop string must not be empty")
    if len(stops) > MAX_STOP_STRINGS:
        raise invalid(f"At most {MAX_STOP_STRINGS} stop strings are allowed")
    return stops


def _bias_keys(value: dict[str, float] | None) -> dict[str, float] | None:
    for key in value or {}:
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise invalid(f"Keys should be token ids, got {key[:40]!r}")
    return value


Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA_PAIRS)]
StopStrings = Annotated[list[str] | None, BeforeValidator(_stop_strings, json_schema_input_type=str | list[str] | None)]
TokenId = Annotated[int, Field(ge=0)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], AfterValidator(_bias_keys)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingRequest(StrictModel):
    """What every endpoint that generates takes: a model, and how to sample."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopStrings = None
    ignore_eos: bool | None = None


class GenerationRequest(SamplingRequest):
    """Parameters that chat and plain completions have in common."""

    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: TopLogprobs | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    """Accepted: text is what the tokens spell, and no space is ever put between special tokens."""
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    bad_words: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_BAD_WORDS)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,120}$")] | None = None
    user: str | None = None
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value", "stream_options is only allowed when stream is true", {"param": "stream_options"}
            )
        if self.continuous_usage and not self.include_usage:
            raise PydanticCustomError(
                "invalid_value", "continuous_usage_stats needs include_usage", {"param": "stream_options"}
            )
        return self

    @model_validator(mode="after")
    def _truncation_leaves_something(self) -> GenerationRequest:
        if self.truncate_prompt_tokens == 0:
            message = "truncate_prompt_tokens is how many tokens are kept, or -1 for as many as fit"
            raise PydanticCustomError("invalid_value", message, {"param": "truncate_prompt_tokens"})
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def ignored_params(self) -> list[str]:
        names = super().ignored_params()
        if self.stream_options is not None:
            names += [f"stream_options.{name}" for name in self.stream_options.ignored_params()]
        return names
