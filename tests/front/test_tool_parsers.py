"""Each parser reads what its family writes, and reads the same however the text is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import ToolCall
from workers.front.tools.output import OutputParser, OutputSyntax
from workers.front.tools.reasoning import PromptEnd
from workers.front.tools.registry import REASONING_PARSERS, TOOL_PARSERS
from workers.front.tools.sink import Functions, Piece

FUNCTIONS = Functions({"weather": {"city": {"type": "string"}, "days": {"type": "integer"}}, "now": {}})
PARIS = '{"city": "Paris é😀", "days": 3}'


def parser(name: str = "", *, style: str = "", prompt: PromptEnd = "none", parallel: bool = True) -> OutputParser:
    reasoning = REASONING_PARSERS.get(style)
    return OutputSyntax("job", reasoning, TOOL_PARSERS.get(name), FUNCTIONS, parallel, prompt).parser(0)


def read(pieces: Sequence[str], *, end: bool = True, **options: Any) -> Piece:
    """All that a reader has been shown after these pieces of text."""
    reading = parser(**options)
    text = reasoning = ""
    for piece in [*pieces, None]:
        if piece is not None:
            reading.feed(piece)
        elif end:
            reading.end()
        new = reading.take()
        text, reasoning = text + new.text, reasoning + new.reasoning
    return Piece(text, reasoning, reading.whole.tool_calls)


def calls(piece: Piece) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in piece.tool_calls]


HERMES = f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>'
XML = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nParis\n"old" town\n</parameter>\n<parameter=days>\n3\n'
    "</parameter>\n</function>\n</tool_call>"
)
XML_ARGUMENTS = r'{"city": "Paris\n\"old\" town", "days": 3}'
NOW = '{"name": "now", "arguments": {}}'
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "just text <tool", "just text <tool", []),
    ("hermes", HERMES, "", [("weather", PARIS)]),
    ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n", "Let me see.", [("weather", PARIS)] * 2),
    ("hermes", f"{HERMES}\nand then\n", "\nand then", [("weather", PARIS)]),
    ("hermes", f'<tool_call>{{"arguments": {PARIS}, "name": "weather"}}</tool_call>', "", [("weather", PARIS)]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    (
        "hermes",
        '<tool_call>{"id": [1, "}"], "name": "f\\u00e9", "arguments": {"a": "\\"}{"}}',
        "",
        [("fé", '{"a": "\\"}{"}')],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "two\nlines"}}</tool_call>',
        "",
        [("f", '{"a": "two\\nlines"}')],
    ),
    ("hermes", "<tool_call>no call</tool_call> more", "<tool_call>no call</tool_call> more", []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1, {"b"', "", [("f", '{"a": [1, {"b"')]),
    ("qwen3", HERMES, "", [("weather", PARIS)]),
    ("qwen3", f"Well.\n\n{XML}\n{XML}", "Well.", [("weather", XML_ARGUMENTS)] * 2),
    ("qwen3", XML.removeprefix("<tool_call>\n"), "", [("weather", XML_ARGUMENTS)]),
    ("qwen3", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [("now", "{}")]),
    (
        "qwen3",
        "<function=f><parameter=a>True</parameter><parameter=b>x y</parameter></function>",
        "",
        [("f", '{"a": true, "b": "x y"}')],
    ),
    ("qwen3", "<function=weather><parameter=city>Par", "", [("weather", '{"city": "Par')]),
    ("qwen3", "<function=a b>", "<function=a b>", []),
    ("llama3_json", f'{{"name": "weather", "parameters": {PARIS}}}', "", [("weather", PARIS)]),
    (
        "llama3_json",
        f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {PARIS}}}; {NOW}',
        "",
        [("weather", PARIS), ("now", "{}")],
    ),
    ("llama3_json", 'See <|python_tag|>{"name": "now", "parameters": {}}', "See", [("now", "{}")]),
    ("llama3_json", '{"name": "Bob", "parameters": {"age": 3}}', '{"name": "Bob", "parameters": {"age": 3}}', []),
    ("llama3_json", ' {"answer": 42}', ' {"answer": 42}', []),
    ("llama3_json", "The answer: {}", "The answer: {}", []),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, {NOW}]',
        "",
        [("weather", PARIS), ("now", "{}")],
    ),
    (
        "mistral",
        f"Hm [TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]now[CALL_ID]ab12[ARGS]{{}}",
        "Hm",
        [("weather", PARIS), ("now", "{}")],
    ),
    ("mistral", f"[TOOL_CALLS]weather{PARIS}", "", [("weather", PARIS)]),
    ("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", []),
    (
        "pythonic",
        '[weather(city="Paris, (old)", days=3), now()]',
        "",
        [("weather", '{"city": "Paris, (old)", "days": 3}'), ("now", "{}")],
    ),
    (
        "pythonic",
        "<|python_start|>[now(a={'b': [1, None, True]}, c='it\\'s')]<|python_end|>",
        "",
        [("now", '{"a": {"b": [1, null, true]}, "c": "it\'s"}')],
    ),
    ("pythonic", "[now(a=x+1, b=true)]", "", [("now", '{"a": "x+1", "b": true}')]),
    ("pythonic", "[1] says so", "[1] says so", []),
    ("pythonic", "[unknown(a=1)]", "[unknown(a=1)]", []),
    ("pythonic", 'No [now(a="', 'No [now(a="', []),
    ("pythonic", '[now(a=1, b="x', "", [("now", '{"a": 1')]),
]


@pytest.mark.parametrize(("name", "text", "content", "wanted"), CASES)
def test_what_is_read(name: str, text: str, content: str, wanted: list[tuple[str, str]]) -> None:
    whole = read([text], name=name)
    assert (whole.text, calls(whole)) == (content, wanted)


@pytest.mark.parametrize(("name", "text"), [case[:2] for case in CASES])
def test_cuts_change_nothing_at_any_time(name: str, text: str) -> None:
    """Not at the end, and not before: what has been shown by a character depends on the text up to there."""
    whole = read(list(text), name=name)
    for cut in range(len(text) + 1):
        assert read([text[:cut], text[cut:]], name=name) == whole
        assert read([text[:cut]], end=False, name=name) == read(list(text[:cut]), end=False, name=name)


WORDS = """<tool_call> </tool_call> {"name":"now" ,"arguments":{ } }} " \\ a , : <function=now> <parameter=a> </parameter>
</function> [TOOL_CALLS] now [ARGS] [ ] ( ) = ' ; <|python_tag|> <|python_start|> <think> </think> 1 é😀"""
PARTS = st.sampled_from([*WORDS.split(), " ", "\n", "\x00"])


@given(
    st.sampled_from(sorted(TOOL_PARSERS)),
    st.sampled_from(["", "qwen3", "deepseek"]),
    st.lists(PARTS, max_size=25),
    st.data(),
)
def test_any_text_is_read_whatever_its_cuts(name: str, style: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(bounds)]
    whole = read(list(text), name=name, style=style)
    assert read(pieces, name=name, style=style) == whole
    if not whole.tool_calls and not style:
        assert whole.text == text


def test_text_is_not_held_back_for_nothing() -> None:
    assert read(["Hello wor"], end=False, name="hermes").text == "Hello wor"
    assert read(["Hello wor <too"], end=False, name="hermes").text == "Hello wor"
    assert calls(read([HERMES[:58]], end=False, name="hermes")) == [("weather", '{"city": "Par')]


def test_calls_come_in_pieces_that_name_them_once() -> None:
    reading = parser("hermes")
    pieces: list[ToolCall] = []
    for char in HERMES + HERMES:
        reading.feed(char)
        pieces += reading.take().tool_calls
    named = [piece for piece in pieces if piece.name]
    assert [(piece.index, piece.name, piece.arguments) for piece in named] == [(0, "weather", "{"), (1, "weather", "{")]
    assert len({piece.id for piece in named}) == 2
    assert all(not piece.id for piece in pieces if not piece.name)
    assert json.loads("".join(piece.arguments for piece in pieces if piece.index == 1)) == json.loads(PARIS)


def test_the_first_call_ends_the_answer_where_one_is_allowed() -> None:
    reading = parser("hermes", parallel=False)
    reading.feed(f"Yes. {HERMES}{HERMES} more")
    assert reading.done
    piece = reading.take()
    assert (piece.text, calls(piece)) == ("Yes.", [("weather", PARIS)])
    assert reading.finish_reason("stop") == "tool_calls"


def test_an_answer_that_was_cut_off_says_so() -> None:
    reading = parser("hermes")
    reading.feed(HERMES)
    assert reading.finish_reason("length") == "length"
    assert parser("hermes").finish_reason("stop") == "stop"


def test_mistral_ids_are_as_its_templates_want_them() -> None:
    (call,) = read(["[TOOL_CALLS]now[ARGS]{}"], name="mistral").tool_calls
    assert len(call.id) == 9
    assert call.id.isalnum()


THOUGHT = "<think>\nHm, <b>\n\n</think>\n\nThe answer.\n"


@pytest.mark.parametrize(
    ("style", "prompt", "text", "reasoning", "content"),
    [
        ("qwen3", "none", THOUGHT, "Hm, <b>", "The answer.\n"),
        ("qwen3", "open", THOUGHT.removeprefix("<think>\n"), "Hm, <b>", "The answer.\n"),
        ("qwen3", "none", "No thought. </think>", "", "No thought. </think>"),
        ("qwen3", "closed", "<think> is a tag", "", "<think> is a tag"),
        ("qwen3", "none", "<think>never ends ", "never ends", ""),
        ("qwen3", "none", " <thin", "", " <thin"),
        ("deepseek", "none", "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("deepseek", "open", THOUGHT, "Hm, <b>", "The answer.\n"),
        ("deepseek", "closed", "Yes.", "", "Yes."),
        ("", "open", THOUGHT, "", THOUGHT),
    ],
)
def test_reasoning(style: str, prompt: PromptEnd, text: str, reasoning: str, content: str) -> None:
    whole = read([text], style=style, prompt=prompt)
    assert (whole.reasoning, whole.text) == (reasoning, content)
    for cut in range(len(text)):
        assert read([text[:cut], text[cut:]], style=style, prompt=prompt) == whole


def test_reasoning_comes_before_calls_and_hides_none() -> None:
    whole = read([f"<think>Shall I write <tool_call>?</think>\n\n{HERMES}"], name="hermes", style="qwen3")
    assert (whole.reasoning, whole.text, calls(whole)) == ("Shall I write <tool_call>?", "", [("weather", PARIS)])


def test_reasoning_tokens_are_counted() -> None:
    reading = parser(style="qwen3")
    for token in ["<think>", "one", " two", "</think>", "three"]:
        reading.feed(token)
    assert reading.reasoning_tokens == 3
