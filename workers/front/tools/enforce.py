"""Calls that have to be made: the grammar of an answer in which they are, in the parser's own syntax.

It is written in llguidance's Lark. Marks such as `<tool_call>` are single tokens of most models that use them; those
are not text for a grammar, and are named by their ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.messages import Grammar, Job
from workers.front.tools import hermes, mistral
from workers.front.tools.reasoning import CLOSING, OPENING, PromptEnd, ReasoningStyle
from workers.grammar import WHITESPACE

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls are written: marks and text around each, between them, and around all. `key` is that of arguments."""

    key: str = "arguments"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


HERMES_FORM = CallForm(before=(hermes.OPENING, "\n"), after=("\n", hermes.CLOSING), between=("\n",))
LLAMA3_FORM = CallForm(key="parameters", between=("; ",))
MISTRAL_FORM = CallForm(first=(mistral.OPENING, "["), between=(", ",), last=("]",))


def call_grammar(
    job: Job, form: CallForm, marks: Mapping[str, int], style: ReasoningStyle | None, prompt: PromptEnd
) -> Grammar:
    """Of an answer to `job` that calls its tools, or the one that is named, after reasoning where the model does so.
    `marks`: the tokens that the vocabulary has for marks."""
    tools = [tool["function"] for tool in job.tools if job.tool_name in (None, tool["function"]["name"])]
    many = job.parallel_tool_calls and job.tool_name is None
    writer = _Writer(marks)
    between = f"({writer.text(*form.between)} call)*" if many else ""
    rules = [
        f"start: {writer.reasoning(style, prompt)} {writer.text(*form.first)} call {between} {writer.text(*form.last)}",
        f"call: {writer.text(*form.before)} function {writer.text(*form.after)}",
        "function: " + " | ".join(f"f{index}" for index in range(len(tools))),
        *(line for index, tool in enumerate(tools) for line in _function(index, tool, form.key)),
        *writer.rules,
    ]
    return Grammar(kind="grammar", value="\n".join(rules), param="tools")


def _function(index: int, tool: dict[str, Any], key: str) -> Sequence[str]:
    head = json.dumps(f'{{"name": {json.dumps(tool["name"])}, "{key}": ')
    return f'f{index}: {head} a{index} "}}"', f"a{index}: %json {json.dumps(_schema(tool.get('parameters')))}"


def _schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """An object's schema. Other properties than those declared are not written, unless it says so."""
    schema = {"type": "object", **(parameters or NO_PARAMETERS)}
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}}


class _Writer:
    """Writes pieces of rules; those that need a rule of their own are in `rules`."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self.rules: list[str] = []
        self._marks = marks

    def text(self, *parts: str) -> str:
        return " ".join(f"<[{self._marks[part]}]>" if part in self._marks else json.dumps(part) for part in parts)

    def reasoning(self, style: ReasoningStyle | None, prompt: PromptEnd) -> str:
        """What may, or has to, come before the calls."""
        if style is None or prompt == "closed":
            return ""
        if CLOSING in self._marks:
            self.rules += [r"thought: /(?s:.*)/", r"space: /\s*/"]
            thought = f"thought {self.text(CLOSING)} space"
        else:
            self.rules += [rf"thought[suffix={json.dumps(CLOSING)}]: /(?s:.*)/", r"space: /\s*/"]
            thought = "thought space"
        begun = style.implied or prompt == "open"
        return f"({self.text(OPENING)})? {thought}" if begun else f"({self.text(OPENING)} {thought})?"
