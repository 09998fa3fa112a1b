"""What is wrong with a grammar is told before any token; what is right reaches every choice's engine request."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from schemas.messages import Grammar, Result
from tests.front import tokenizers
from tests.front.harness import Bench
from workers import grammar as grammar_module
from workers.grammar import GrammarError, Grammars, tokenizer_json

TOKENIZER = tokenizers.byte_level()
VOCAB, EOS = len(TOKENIZER), int(TOKENIZER.eos_token_id)


def json_grammar(schema: Any, param: str = "response_format") -> Grammar:
    return Grammar(kind="json", value=json.dumps(schema), param=param)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(tokenizer_json(TOKENIZER), VOCAB, [EOS])


def accepts(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole output, by tokens."""
    matcher = grammars.matcher(grammar)
    try:
        matcher.take(TOKENIZER.encode(text, add_special_tokens=False))
        matcher.take([EOS])
    except GrammarError:
        return False
    return True


PERSON = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "ÿ"]}}, "required": ["a"]}
STRICT = {**PERSON, "additionalProperties": False}


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (json_grammar(STRICT), ['{"a":1}', '{"a": 1, "b": "ÿ"}', '{\n  "a": 1\n}'], ['{"b":"x"}', '{"a":1,"c":2}']),
        (json_grammar(PERSON), ['{"a":1,"c":[{}]}'], ['{"a":1.5}', ' {"a":1}', '{"a":   1}', '{"a":1}}', "[]", ""]),
        (json_grammar({"type": "object"}), ["{}", '{"x": [1, null]}'], ["{", '"x"']),
        (json_grammar({}), ["1", '"x"', "[true]"], ["x"]),
        (Grammar(kind="regex", value="[a-c]{2}|😀"), ["ab", "😀"], ["a", "abc", "😀😀", "aé"]),
        (
            Grammar(kind="choice", value='["yes", "no \\"way\\"", "a/b\\\\c"]'),
            ["yes", 'no "way"', "a/b\\c"],
            ["y", "no"],
        ),
        (Grammar(kind="grammar", value='start: "a" start | "b"'), ["aab", "b"], ["a", "ba"]),
        (Grammar(kind="grammar", value='root ::= ("x" | "y")+'), ["xyx"], ["", "xz"]),
    ],
    ids=lambda value: value.value[:30] if isinstance(value, Grammar) else "",
)
def test_what_matches(grammars: Grammars, grammar: Grammar, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(grammars, grammar, text)] == []
    assert [text for text in wrong if accepts(grammars, grammar, text)] == []


BAD = [
    (json_grammar({"type": "objec"}), "objec"),
    (json_grammar({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (json_grammar({"$ref": "#/$defs/none"}), "/\\$defs/none"),
    (json_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "NoExtension"),
    (json_grammar({"type": "string", "pattern": "("}), "unclosed"),
    (json_grammar({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
    (json_grammar({"enum": []}), "empty"),
    (json_grammar([1]), "Expected"),
    (Grammar(kind="json", value="{"), "truncated"),
    (Grammar(kind="json", value='{"items":' * 900 + "{}" + "}" * 900), "recursion"),
    (Grammar(kind="regex", value="(?=a)b"), "look-around"),
    (Grammar(kind="choice", value="[]"), "empty"),
    (Grammar(kind="choice", value='["a", 1]'), "Expected `str`"),
    (Grammar(kind="grammar", value="start: other"), "unknown name"),
    (Grammar(kind="grammar", value='start: "a" <|none|>'), "unknown special token"),
]


@pytest.mark.parametrize(("grammar", "word"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_compiled_is_said(grammars: Grammars, grammar: Grammar, word: str) -> None:
    with pytest.raises(GrammarError, match=word):
        grammars.matcher(grammar)


def test_the_cache_is_bounded_and_matchers_are_apart(grammars: Grammars) -> None:
    choice = Grammar(kind="choice", value='["ab", "ac"]')
    first, second = grammars.matcher(choice), grammars.matcher(choice)
    first.take(TOKENIZER.encode("ab", add_special_tokens=False))
    assert first.is_complete
    assert not second.is_complete
    for index in range(2 * grammar_module.CACHED_GRAMMARS):
        grammars.matcher(Grammar(kind="regex", value=f"a{index}"))
    assert grammars._compiled.cache_info().currsize == grammar_module.CACHED_GRAMMARS


def test_the_end_is_allowed_where_the_output_may_end(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar(kind="regex", value="aa?"))
    bits = np.empty(-(-VOCAB // 32), dtype=np.int32)
    ends = []
    for _ in range(3):
        matcher.fill(bits)
        ends.append(bool(bits[EOS // 32] >> EOS % 32 & 1))
        if not matcher.is_complete:
            matcher.take(TOKENIZER.encode("a", add_special_tokens=False))
    assert ends == [False, True, True]


def test_what_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 0.0)
    with pytest.raises(GrammarError, match="to compile"):
        Grammars(tokenizer_json(TOKENIZER), VOCAB, [EOS]).matcher(Grammar(kind="regex", value="ab"))


def test_tokenizers_that_spell_no_bytes_are_refused() -> None:
    for tokenizer in (tokenizer_json(tokenizers.wordpiece()), ""):
        with pytest.raises(GrammarError, match="this model's tokenizer"):
            Grammars(tokenizer, 50, [1]).load()


def test_sentencepiece() -> None:
    tokenizer = tokenizers.sentencepiece()
    made = Grammars(tokenizer_json(tokenizer), len(tokenizer) + 5, [0])
    matcher = made.matcher(Grammar(kind="regex", value="a hello"))
    matcher.take(tokenizer.convert_tokens_to_ids(["a", "▁hello"]))
    assert matcher.is_complete


CHAINS = """
from schemas.messages import MAX_GRAMMAR_LENGTH
from tests.front.test_grammar import *
def chain(pattern, end):
    parts = [pattern % (i, i + 1) for i in range(MAX_GRAMMAR_LENGTH // len(pattern % (9999, 9999)))]
    return "".join(parts) + end % len(parts)
made = Grammars(tokenizer_json(TOKENIZER), VOCAB, [EOS])
schema = '{"$ref":"#/$defs/0","$defs":{' + chain('"%d":{"items":{"$ref":"#/$defs/%d"}},', '"%d":{}}}')
for grammar in (
    Grammar(kind="json", value=schema),
    Grammar(kind="grammar", value="start: a0\\n" + chain("a%d: a%d\\n", 'a%d: "x"\\n')),
    Grammar(kind="grammar", value="start: A0\\n" + chain('A%d: A%d "x"\\n', 'A%d: "x"\\n')),
):
    try:
        made.matcher(grammar).fill(np.empty(-(-VOCAB // 32), dtype=np.int32))
    except GrammarError:
        pass
print("alive")
"""


def test_long_chains_of_references_do_not_overflow_the_stack() -> None:
    """In a process of its own: an overflow would end it."""
    done = subprocess.run([sys.executable, "-c", CHAINS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-500:]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_grammar_fails_the_job_before_any_token(bench: Bench, stream: bool) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(stream=stream, sampling={"grammar": json_grammar({"type": "objec"})}))
    result: Result = await bench.reader.result("j1")
    assert result.outcome == "failed"
    assert result.error is not None
    assert (result.error.status, result.error.param, result.error.code) == (
        400,
        "response_format",
        "invalid_json_schema",
    )
    assert "objec" in result.error.message
    assert engine.added == []


async def test_every_choice_gets_the_grammar(bench: Bench) -> None:
    engine, _ = await bench.worker()
    grammar = Grammar(kind="regex", value="[a-z ]+")
    await bench.submit(bench.job(sampling={"grammar": grammar, "n": 3, "max_tokens": 2}))
    await engine.until_running(3)
    assert [added.sampling.grammar for added in engine.added] == [grammar] * 3
    await engine.play()
    assert (await bench.reader.result("j1")).outcome == "completed"
