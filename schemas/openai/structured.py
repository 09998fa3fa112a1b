"""Structured outputs: OpenAI's `response_format`, and the extensions that vLLM named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.messages import MAX_GRAMMAR_LENGTH, Grammar
from schemas.openai.common import GenerationRequest, StrictModel

ANY_OBJECT = {"type": "object"}

Schema = dict[str, Any]
Text = Annotated[str, Field(min_length=1)]
Choices = Annotated[list[Text], Field(min_length=1)]


class JsonSchemaFormat(StrictModel):
    """The schema is always enforced as a whole, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_is_given(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "Field required", {"param": "json_schema"})
        return self

    def schema_of(self) -> Schema | None:
        """What the output must match; None for plain text."""
        if self.json_schema is not None and self.type == "json_schema":
            return self.json_schema.schema_
        return ANY_OBJECT if self.type == "json_object" else None


class StructuredOutputs(BaseModel):
    """One of a JSON Schema (as an object or as its text), a regular expression, a list of strings, a Lark or GBNF grammar.
    Nothing in here is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    json_: Annotated[Schema | Text | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class StructuredRequest(GenerationRequest):
    """At most one constraint on the output, under whichever name."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None

    @model_validator(mode="after")
    def _one_grammar(self) -> StructuredRequest:
        given = list(self._grammars())
        for grammar in given[1:]:
            _refuse("Only one of response_format, structured_outputs and guided_* may say what to match", grammar.param)
        for grammar in given:
            if len(grammar.value) > MAX_GRAMMAR_LENGTH:
                _refuse(f"At most {MAX_GRAMMAR_LENGTH} characters are allowed", grammar.param)
        return self

    def grammar(self) -> Grammar | None:
        """What the output must match."""
        return next(self._grammars(), None)

    def _grammars(self) -> Iterator[Grammar]:
        if self.response_format is not None and (schema := self.response_format.schema_of()) is not None:
            yield Grammar(kind="json", value=_text(schema), param="response_format")
        outputs = self.structured_outputs or StructuredOutputs()
        yield from _grammar("structured_outputs", outputs.json_, outputs.regex, outputs.choice, outputs.grammar)
        if outputs.json_object:
            yield Grammar(kind="json", value=_text(ANY_OBJECT))
        yield from _grammar("guided_json", json=self.guided_json)
        yield from _grammar("guided_regex", regex=self.guided_regex)
        yield from _grammar("guided_choice", choice=self.guided_choice)
        yield from _grammar("guided_grammar", grammar=self.guided_grammar)


def _grammar(
    param: str,
    json: Schema | str | None = None,
    regex: str | None = None,
    choice: list[str] | None = None,
    grammar: str | None = None,
) -> Iterator[Grammar]:
    if json is not None:
        yield Grammar(kind="json", value=_text(json), param=param)
    if regex is not None:
        yield Grammar(kind="regex", value=regex, param=param)
    if choice is not None:
        yield Grammar(kind="choice", value=_text(choice), param=param)
    if grammar is not None:
        yield Grammar(kind="grammar", value=grammar, param=param)


def _text(value: Schema | list[str] | str) -> str:
    """As JSON, with keys in the order given: properties are written in it."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _refuse(message: str, param: str) -> None:
    raise PydanticCustomError("invalid_value", message, {"param": param})
