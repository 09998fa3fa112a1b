"""A call that has to be made: the grammar admits calls alone, and what it admits the parser reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.messages import Grammar, Job, ToolChoice
from tests.front import tokenizers
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import Prompt, TextProcessor
from workers.front.tools.model_syntax import ModelSyntax
from workers.grammar import GrammarError, Grammars, tokenizer_json

TEMPLATE = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}{{ begin }}"
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
LIMITS = Limits(4096, 512)
DEFS = {"X": {"type": "integer"}}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/X"}},
    "required": ["city"],
    "$defs": DEFS,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
PARIS = '{"city": "Paris", "days": 3}'


class Enforced:
    """One job's grammar and parser, for a tokenizer with or without tokens for marks."""

    def __init__(self, parser: Any, *, reasoning: Any = "none", marks: bool = True) -> None:
        self.tokenizer = tokenizers.byte_level(TEMPLATE)
        if marks:
            self.tokenizer.add_tokens(MARKS)
            self.tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
        self._text = TextProcessor(self.tokenizer, ModelSyntax.of(self.tokenizer, parser, reasoning))

    async def prompt(self, choice: ToolChoice = "required", *, begin: str = "", **fields: Any) -> Prompt:
        messages = [{"role": "user", "content": "x"}]
        made = Job(id="j", model="m", messages=messages, tool_choice=choice, **{"tools": TOOLS, **fields})
        return await self._text.prepare(Job(**{**_fields(made), "template_kwargs": {"begin": begin}}), LIMITS)

    async def admits(self, text: str, **fields: Any) -> bool:
        prompt = await self.prompt(**fields)
        assert prompt.grammar is not None
        return self.matches(prompt.grammar, text)

    def matches(self, grammar: Grammar, text: str) -> bool:
        tokens = [*self.tokenizer.backend_tokenizer.encode(text).ids, self.tokenizer.eos_token_id]
        grammars = Grammars(tokenizer_json(self.tokenizer), LIMITS.vocab_size, [self.tokenizer.eos_token_id])
        try:
            grammars.matcher(grammar).take(list(tokens))
        except GrammarError:
            return False
        return True


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def call(parser: str, name: str = "weather", arguments: str = PARIS) -> str:
    if parser == "llama3_json":
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    inner = f'{{"name": "{name}", "arguments": {arguments}}}'
    return f"[TOOL_CALLS][{inner}]" if parser == "mistral" else f"<tool_call>\n{inner}\n</tool_call>"


FORMS = ["hermes", "qwen3", "llama3_json", "mistral"]


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("parser", FORMS)
async def test_calls_are_admitted_and_read(parser: str, marks: bool) -> None:
    enforced = Enforced(parser, marks=marks)
    for name, arguments in [("weather", PARIS), ("weather", '{"city":"Paris"}'), ("now", "{}")]:
        text = call(parser, name, arguments)
        assert await enforced.admits(text)
        output = (await enforced.prompt()).output
        assert output is not None
        reading = output.parser(0)
        reading.feed(text)
        reading.end()
        assert [(made.name, made.arguments) for made in reading.whole.tool_calls] == [(name, arguments)]
        assert reading.take().text == ""


@pytest.mark.parametrize("parser", FORMS)
async def test_nothing_else_is_admitted(parser: str) -> None:
    enforced = Enforced(parser)
    whole = call(parser)
    assert not await enforced.admits("It is sunny.")
    assert not await enforced.admits("Well: " + whole)
    assert not await enforced.admits(whole + " so")
    assert not await enforced.admits(call(parser, "other"))
    assert not await enforced.admits(call(parser, arguments='{"days": 3}'))
    assert not await enforced.admits(call(parser, arguments='{"city": "P", "days": "3"}'))
    assert not await enforced.admits(call(parser, arguments='{"city": "P", "more": 1}'))
    assert not await enforced.admits(call(parser, "now", '{"a": 1}'))


async def test_a_named_function_is_called_once() -> None:
    enforced = Enforced("hermes")
    now = call("hermes", "now", "{}")
    assert await enforced.admits(now, tool_name="now")
    assert not await enforced.admits(call("hermes"), tool_name="now")
    assert not await enforced.admits(f"{now}\n{now}", tool_name="now")


@pytest.mark.parametrize(("parallel", "admitted"), [(True, True), (False, False)])
async def test_several_calls(parallel: bool, admitted: bool) -> None:
    several = {
        "hermes": "\n".join([call("hermes")] * 3),
        "llama3_json": "; ".join([call("llama3_json")] * 3),
        "mistral": call("mistral")[:-1] + ", " + call("mistral").removeprefix("[TOOL_CALLS]["),
    }
    for parser, text in several.items():
        assert await Enforced(parser).admits(text, parallel_tool_calls=parallel) is admitted


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize(
    ("reasoning", "begin", "before", "admitted"),
    [
        ("qwen3", "", "", True),
        ("qwen3", "", "<think>\nhm <b>\n</think>\n\n", True),
        ("qwen3", "", "hm</think>", False),
        ("qwen3", "<think>\n", "hm\n</think>\n\n", True),
        ("qwen3", "<think>\n", "", False),
        ("qwen3", "<think></think>", "", True),
        ("qwen3", "<think></think>", "<think>hm</think>", False),
        ("deepseek", "", "hm</think>", True),
        ("deepseek", "", "<think>hm</think>", True),
        ("deepseek", "", "", False),
        ("none", "", "<think>hm</think>", False),
    ],
)
async def test_reasoning_comes_first(reasoning: str, begin: str, before: str, admitted: bool, marks: bool) -> None:
    enforced = Enforced("hermes", reasoning=reasoning, marks=marks)
    assert await enforced.admits(before + call("hermes"), begin=begin) is admitted


@pytest.mark.parametrize("choice", ["auto", "none"])
async def test_nothing_is_enforced_where_the_model_may_choose(choice: ToolChoice) -> None:
    assert (await Enforced("hermes").prompt(choice)).grammar is None


async def test_schemas_that_cannot_be_enforced_are_refused() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "nothing"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(InvalidJobError) as caught:
        await Enforced("hermes").prompt(tools=[tool])
    assert (caught.value.error.status, caught.value.error.param) == (400, "tools")


async def test_a_syntax_without_a_grammar_says_so() -> None:
    with pytest.raises(InvalidJobError) as caught:
        await Enforced("pythonic").prompt()
    assert (caught.value.error.status, caught.value.error.param) == (400, "tool_choice")
    assert (await Enforced("pythonic").prompt("auto")).output is not None


async def test_names_may_hold_what_lark_would_read() -> None:
    tool = {"type": "function", "function": {"name": "a.b-c", "parameters": {"properties": {'"\\é': {"const": 1}}}}}
    arguments = json.dumps({'"\\é': 1}, ensure_ascii=False)
    assert await Enforced("hermes").admits(call("hermes", "a.b-c", arguments), tools=[tool])
