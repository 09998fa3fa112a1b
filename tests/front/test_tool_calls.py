"""Tool calls and reasoning through a whole worker front, also where it dies in the middle of one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from schemas.messages import Job, Result, ToolCall
from tests.front import tokenizers
from tests.front.harness import Bench, ids
from workers.front.detokenize import Vocabulary
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import TextProcessor
from workers.front.tools.model_syntax import ModelSyntax
from workers.front.tools.registry import REASONING_PARSERS, TOOL_PARSERS

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}
SYNTAX = ModelSyntax(TOOL_PARSERS["hermes"], REASONING_PARSERS["qwen3"], template_has_tools=True)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "café 🦀"}}\n</tool_call>'
SAYS = f"<think>\nI see 🦀.\n</think>\n\nWait. {CALL}\n{CALL}"
ARGUMENTS = '{"a": "café 🦀"}'


def job(bench: Bench, **fields: Any) -> Job:
    sampling = {"max_tokens": 190 - len(ids("<|user|>hi<|end|><|assistant|>"))}
    return bench.job(messages=[{"role": "user", "content": "hi"}], sampling=sampling, **{"tools": [TOOL], **fields})


def streamed(bench: Bench) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Text, reasoning and calls (id, name, arguments) as a client puts them together."""
    text = reasoning = ""
    calls: defaultdict[int, list[str]] = defaultdict(lambda: ["", "", ""])
    for delta in bench.reader.taken:
        text, reasoning = text + delta.text, reasoning + delta.reasoning
        for piece in delta.tool_calls:
            assert bool(piece.id) == bool(piece.name) == (piece.index not in calls)
            for position, part in enumerate((piece.id, piece.name, piece.arguments)):
                calls[piece.index][position] += part
    return text, reasoning, [(call[0], call[1], call[2]) for _, call in sorted(calls.items())]


def whole(result: Result) -> tuple[str, str, list[tuple[str, str, str]]]:
    (choice,) = result.choices
    return choice.text, choice.reasoning, [(call.id, call.name, call.arguments) for call in choice.tool_calls]


async def test_whole_and_streamed_are_the_same(bench: Bench) -> None:
    engine, _ = await bench.worker(SAYS, syntax=SYNTAX)
    seen = []
    for name, stream in (("j", True), ("k", False)):
        await bench.submit(job(bench, job_id=name, stream=stream))
        await engine.until_running(1)
        await engine.play()
        result = await bench.reader.result(name)
        seen.append(streamed(bench) if stream else whole(result))
        assert 0 < result.usage.reasoning_tokens <= len(ids(SAYS.partition("</think>")[0])) + len(ids("</think"))
    for text, reasoning, calls in seen:
        assert (text, reasoning) == ("Wait.", "I see 🦀.")
        assert [call[1:] for call in calls] == [("f", ARGUMENTS)] * 2
    assert bench.reader.finish["j", 0] == "tool_calls"
    assert result.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("steps", [3, 30, 45, 55, 70, 80, 100])
async def test_a_worker_dies_and_another_goes_on(bench: Bench, steps: int) -> None:
    first, _ = await bench.worker(SAYS, syntax=SYNTAX)
    await bench.submit(job(bench))
    await first.until_running(1)
    await first.step(steps)
    await bench.reader.until(lambda: len(bench.reader.tokens["j1", 0]) == steps)
    await bench.kill()
    second, _ = await bench.worker(SAYS, syntax=SYNTAX)
    await second.until_running(1)
    await second.play()
    result = await bench.reader.result("j1")
    text, reasoning, calls = streamed(bench)
    assert (text, reasoning, [call[1:] for call in calls]) == ("Wait.", "I see 🦀.", [("f", ARGUMENTS)] * 2)
    assert result.usage.reasoning_tokens > 0


async def test_one_call_ends_the_answer_where_one_is_allowed(bench: Bench) -> None:
    engine, _ = await bench.worker(SAYS, syntax=SYNTAX)
    await bench.submit(job(bench, parallel_tool_calls=False))
    await engine.until_running(1)
    await engine.play()
    result = await bench.reader.result("j1")
    assert [call[1:] for call in streamed(bench)[2]] == [("f", ARGUMENTS)]
    assert engine.aborted == [engine.added[0].id]
    assert result.usage.completion_tokens < len(ids(SAYS))
    assert bench.reader.finish["j1", 0] == "tool_calls"


@pytest.mark.parametrize(("choice", "enforced"), [("required", True), ("auto", False)])
async def test_the_engine_enforces_a_required_call(bench: Bench, choice: Any, enforced: bool) -> None:
    engine, _ = await bench.worker(SAYS, syntax=SYNTAX)
    await bench.submit(job(bench, tool_choice=choice))
    await engine.until_running(1)
    assert (engine.added[0].sampling.grammar is not None) is enforced
    await engine.play()
    await bench.reader.result("j1")


@pytest.mark.parametrize("fields", [{"tools": []}, {"tool_choice": "none"}])
async def test_nothing_is_called_where_nothing_may_be(bench: Bench, fields: dict[str, Any]) -> None:
    engine, _ = await bench.worker(CALL, syntax=SYNTAX)
    await bench.submit(job(bench, **fields))
    await engine.until_running(1)
    await engine.play()
    await bench.reader.result("j1")
    assert streamed(bench) == (CALL, "", [])


async def test_prompts_without_a_conversation_are_continued_as_text(bench: Bench) -> None:
    engine, _ = await bench.worker("<think>x</think>", syntax=SYNTAX)
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.play()
    await bench.reader.result("j1")
    assert streamed(bench)[0] == "<think>x</think>"


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.arguments.a }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if effort %}<think>{% endif %}{% endif %}"
)


PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def rendered(
    template: str, *, parser: Any = "auto", messages: list[dict[str, Any]] | None = None, **fields: Any
) -> str:
    tokenizer = tokenizers.byte_level(template)
    text = TextProcessor(tokenizer, ModelSyntax.of(tokenizer, parser))
    made = Job(
        id="j", model="m", messages=messages or [{"role": "user", "content": "hi"}], **{"tools": [TOOL], **fields}
    )
    return str(tokenizer.decode(text._tokenize(made)))


def test_tools_reach_the_template_unless_none_may_be_called() -> None:
    assert '"name": "f"' in rendered(TEMPLATE)
    assert rendered(TEMPLATE, tool_choice="none") == "<|user|>hi<|assistant|>"


def test_arguments_of_earlier_calls_are_objects_in_the_template() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "deep"}'}}
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert "<tool_call>deep" in rendered(TEMPLATE, messages=[message])
    call["function"]["arguments"] = "[1]"  # type: ignore[index]
    with pytest.raises(InvalidJobError) as caught:
        rendered(TEMPLATE, messages=[message])
    assert caught.value.error.param == "messages[0].tool_calls"


def test_a_template_without_tools_has_them_told_in_words() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "deep"}'}}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    said = rendered(PLAIN, parser="hermes", messages=messages)
    assert said.startswith("<|system|>Be brief.\n\n")
    assert '{"name": "f", "parameters"' in said
    assert '<|assistant|><tool_call>\n{"name": "f", "arguments": {"a": "deep"}}\n</tool_call>' in said


@pytest.mark.parametrize(
    ("parser", "said"), [("auto", "no tool parser"), ("none", "no tool parser"), ("mistral", "in words")]
)
async def test_tools_are_refused_where_calls_cannot_be_read(parser: Any, said: str) -> None:
    tokenizer = tokenizers.byte_level(PLAIN)
    text = TextProcessor(tokenizer, ModelSyntax.of(tokenizer, parser))
    made = Job(id="j", model="m", messages=[{"role": "user", "content": "hi"}], tools=[TOOL])
    with pytest.raises(InvalidJobError) as caught:
        await text.prepare(made, Limits(4096, 400))
    assert (caught.value.error.status, caught.value.error.param) == (400, "tools")
    assert said in caught.value.error.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": [], "tool_choice": "required"}, "where there are tools"),
        ({"messages": None, "prompt": "x"}, "not with a prompt"),
        ({"tools": [{"name": "f"}]}, "tools[0].function.name"),
        ({"tools": [TOOL, {"function": {"name": "g", "parameters": "x"}}]}, "tools[1].function.parameters"),
        ({"tool_choice": "required", "tool_name": "g"}, "none of the tools"),
        ({"tool_name": "f"}, "goes with"),
    ],
)
async def test_malformed_tools_from_the_queue_are_named(fields: dict[str, Any], said: str) -> None:
    tokenizer = tokenizers.byte_level(TEMPLATE)
    asked = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], **fields}
    with pytest.raises(InvalidJobError) as caught:
        await TextProcessor(tokenizer).prepare(Job(id="j", model="m", **asked), Limits(4096, 400))
    assert said in caught.value.error.message


@pytest.mark.parametrize(
    ("effort", "text", "seen"), [(True, "hm</think>yes", ("hm", "yes")), (False, "yes", ("", "yes"))]
)
async def test_reasoning_that_the_prompt_has_begun(effort: bool, text: str, seen: tuple[str, str]) -> None:
    tokenizer = tokenizers.byte_level(TEMPLATE)
    processor = TextProcessor(tokenizer)
    made = Job(id="j", model="m", messages=[{"role": "user", "content": "hi"}], template_kwargs={"effort": effort})
    prompt = await processor.prepare(made, Limits(4096, 400))
    assert prompt.output is not None
    parser = prompt.output.parser(0)
    parser.feed(text)
    parser.end()
    piece = parser.take()
    assert (piece.reasoning, piece.text) == seen


SIGNS = [
    ("{{ tools }} <tool_call>", "hermes"),
    ("{{ tools }} <tool_call><function=", "qwen3"),
    ("{{ tools }} [TOOL_CALLS]", "mistral"),
    ('{{ tools }} Respond in the format {"name": function name, "parameters": dictionary', "llama3_json"),
    ("{{ tools }} [func_name1(params_name1=params_value1", "pythonic"),
    ("{{ tools }}", None),
    ("<tool_call>", None),
]


@pytest.mark.parametrize(("template", "name"), SIGNS)
def test_the_template_tells_the_parser(template: str, name: str | None) -> None:
    syntax = ModelSyntax.of(tokenizers.byte_level(template))
    assert syntax.tools is (None if name is None else TOOL_PARSERS[name])
    assert ModelSyntax.of(tokenizers.byte_level(template), "none").tools is None
    assert ModelSyntax.of(tokenizers.byte_level(template), "mistral").tools is TOOL_PARSERS["mistral"]


@pytest.mark.parametrize(
    ("template", "name"), [("<think>", "qwen3"), ("<\uff5cAssistant\uff5c></think>", "deepseek"), ("", None)]
)
def test_the_template_tells_of_reasoning(template: str, name: str | None) -> None:
    syntax = ModelSyntax.of(tokenizers.byte_level(template))
    assert syntax.reasoning is (None if name is None else REASONING_PARSERS[name])
    assert ModelSyntax.of(tokenizers.byte_level(template), reasoning="none").reasoning is None


def test_special_tokens_of_a_syntax_are_seen_and_others_are_not() -> None:
    tokenizer = tokenizers.byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|other|>"]})
    reading = Vocabulary(tokenizer).detokenizer(
        [], skip_special_tokens=True, keep=frozenset({"[TOOL_CALLS]", "[ARGS]"})
    )
    tokens = tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "<|other|>"])
    assert [reading.step(token) for token in tokens] == ["[TOOL_CALLS]", ""]


def test_ids_are_the_same_everywhere() -> None:
    syntax = ModelSyntax(TOOL_PARSERS["hermes"], None, template_has_tools=True)
    made = Job(id="j", model="m", messages=[{"role": "user", "content": "x"}], tools=[TOOL])

    def calls(choice: int) -> list[ToolCall]:
        parser = syntax.output(made, "").parser(choice)
        parser.feed(CALL)
        return list(parser.whole.tool_calls)

    assert calls(0) == calls(0)
    assert calls(0)[0].id != calls(1)[0].id
    assert calls(0)[0].id.startswith("call_")
