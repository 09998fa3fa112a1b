"""A choice rebuilt from the tokens shown goes on exactly where it stood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import FinishReason, SamplingParams
from tests.front import tokenizers
from workers.front.choice import ChoiceContext, ChoiceRun, StopTokens
from workers.front.detokenize import Vocabulary
from workers.front.text import Prompt
from workers.front.tools.sink import Piece
from workers.protocol import TokenLogprobs, TokenOutput

TOKENIZER = tokenizers.byte_level()
VOCABULARY = Vocabulary(TOKENIZER)
EOS = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return list(TOKENIZER.backend_tokenizer.encode(text).ids)


def choice(max_tokens: int = 100, **sampling: object) -> ChoiceRun:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return ChoiceRun(0, ChoiceContext(VOCABULARY, params, Prompt([1], max_tokens), StopTokens(params, [EOS])))


def play(run: ChoiceRun, tokens: list[int], max_tokens: int = 100, ignore_eos: bool = False) -> list[str]:
    """Feed tokens one at a time as an engine would, until the choice ends."""
    shown = []
    for token_id in tokens:
        if run.finish_reason is not None:
            break
        ended = token_id == EOS and not ignore_eos
        length = len(run.tokens) + 1 >= max_tokens
        finish: FinishReason | None = "stop" if ended else "length" if length else None
        shown.append(run.take(TokenOutput("r", [token_id], finish, token_id if ended else None)).text)
    return shown


TOKENS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30)
STOPS = st.lists(st.sampled_from(["a", "ab", "the", " w", "\ufffd", "e q"]), max_size=3)


@given(TOKENS, STOPS, st.integers(0, 30), st.integers(1, 30), st.booleans(), st.integers(0, 5))
def test_resumed_text_is_the_same(
    tokens: list[int], stops: list[str], cut: int, max_tokens: int, include: bool, min_tokens: int
) -> None:
    options = {"stop": stops, "include_stop_str_in_output": include, "min_tokens": min_tokens, "ignore_eos": True}
    whole = choice(max_tokens, **options)
    pieces = play(whole, tokens, max_tokens, ignore_eos=True)
    cut = min(cut, len(whole.tokens))
    resumed = choice(max_tokens, **options)
    resumed.rebuild(whole.tokens[:cut])
    assert resumed.text == "".join(pieces[:cut])
    assert play(resumed, tokens[cut:], max_tokens, ignore_eos=True) == pieces[cut:]
    assert (resumed.tokens, resumed.text, resumed.finish_reason) == (whole.tokens, whole.text, whole.finish_reason)
    assert whole.since(cut).text == "".join(pieces[cut:])


def test_end_of_sequence_is_counted_and_hidden() -> None:
    run = choice(skip_special_tokens=False)
    assert "".join(play(run, [*ids("hello"), EOS])) == "hello"
    assert run.tokens == [*ids("hello"), EOS]
    assert run.finish_reason == "stop"


@pytest.mark.parametrize(("include", "text"), [(False, "hello"), (True, "hello!")])
def test_stop_token_text_is_hidden_unless_wanted(include: bool, text: str) -> None:
    (bang,) = ids("!")
    run = choice(stop_token_ids=[bang], include_stop_str_in_output=include)
    for token_id in ids("hello"):
        run.take(TokenOutput("r", [token_id]))
    run.take(TokenOutput("r", [bang], "stop", bang))
    assert (run.text, run.finish_reason) == (text, "stop")


def test_rebuilt_after_its_end_is_finished() -> None:
    run = choice()
    run.rebuild([*ids("hello"), EOS])
    assert (run.text, run.finish_reason) == ("hello", "stop")
    run = choice(max_tokens=1)
    run.rebuild(ids("q"))
    assert run.finish_reason == "length"
    run = choice(ignore_eos=True)
    run.rebuild([EOS])
    assert run.finish_reason is None


def test_ids_of_the_stop_string_are_reported_but_not_what_follows() -> None:
    run = choice(stop=["qz"])
    tokens = [*ids("hello"), *ids("q"), *ids("z"), *ids("x")]
    assert run.take(TokenOutput("r", tokens)).text == "hello"
    assert run.tokens == tokens[:-1]


def test_held_text_comes_with_the_end() -> None:
    run = choice(stop=["qz"])
    run.take(TokenOutput("r", ids("q")))
    assert run.text == ""
    run.take(TokenOutput("r", ids("x"), "length"))
    assert run.text == "qx"


def test_a_stop_string_beats_the_length() -> None:
    run = choice(max_tokens=1, stop=["q"])
    run.take(TokenOutput("r", ids("q"), "length"))
    assert (run.text, run.finish_reason) == ("", "stop")


def test_min_tokens_before_a_stop_string() -> None:
    run = choice(stop=["q"], min_tokens=2)
    for token_id in ids("q") * 4:
        run.take(TokenOutput("r", [token_id]))
        if run.finish_reason:
            break
    assert (len(run.tokens), run.text) == (3, "qq")


def test_logprobs_have_text_and_bytes() -> None:
    lead = ids("🦀")[0]
    (letter,) = ids("q")
    run = choice(logprobs=1)
    run.take(TokenOutput("r", [letter], logprobs=[TokenLogprobs(-0.5, [lead], [-0.1])]))
    (position,) = run.delta("j", 0, 0, Piece("q")).logprobs or []
    assert (position.sampled.token, position.sampled.logprob, position.sampled.token_bytes) == ("q", -0.5, [113])
    assert bytes(position.top[0].token_bytes) == VOCABULARY.token_bytes(lead)


def test_logprobs_of_another_worker_are_not_made_up() -> None:
    run = choice(max_tokens=3, logprobs=0)
    run.rebuild(ids("q"))
    run.take(TokenOutput("r", ids("z"), logprobs=[TokenLogprobs(-0.5, [], [])]))
    assert len(run.delta("j", 1, 1, Piece("z")).logprobs or []) == 1
    assert run.delta("j", 1, 0, Piece("qz")).logprobs is None
    run.take(TokenOutput("r", ids("x"), "length", logprobs=[TokenLogprobs(-0.5, [], [])]))
    assert run.finished().logprobs is None
