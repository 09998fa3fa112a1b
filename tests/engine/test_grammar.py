"""Outputs that follow a grammar, under every way of scheduling. The model is random: what is right comes of the masks."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from schemas.messages import Grammar, SamplingParams
from tests.engine import tiny
from tests.front import tokenizers
from workers.engine.engine import Engine, InvalidRequest
from workers.engine.masks import TokenMasks, unpack_bits
from workers.engine.sampler import Sampler
from workers.grammar import GrammarError, Grammars, Matcher
from workers.protocol import AddRequest, TokenOutput

pytestmark = pytest.mark.gpu if tiny.DEVICE.type == "cuda" else []
TOKENIZER = tokenizers.byte_level()
VOCAB, EOS = len(TOKENIZER) + 13, int(TOKENIZER.eos_token_id)
PROMPTS = [[7 + index, 40, 90 + 2 * index][: 1 + index % 3] * (1 + index) for index in range(6)]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = Grammar(kind="json", value=json.dumps(SCHEMA))
CHOICE = Grammar(kind="choice", value='["the lazy dog", "the quick fox", "café"]')
DIGITS = Grammar(kind="regex", value="[0-9]{3}(-[0-9]+)?")
GBNF = Grammar(kind="grammar", value='root ::= "ab" | "ab" root')
asynchronous = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.reference(vocab_size=VOCAB)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER.backend_tokenizer.to_str(), VOCAB, [EOS])


def engine(model: Any, grammars: Grammars | None, asynchronous: bool = False, **settings: Any) -> Engine:
    made = tiny.engine(model, eos=EOS, **settings)
    made.grammars, made.asynchronous = grammars, asynchronous
    return made


def request(name: str, grammar: Grammar | None, index: int = 0, **sampling: Any) -> AddRequest:
    settings: dict[str, Any] = dict(temperature=1.0, seed=index, max_tokens=100, ignore_eos=False, grammar=grammar)
    return tiny.request(name, PROMPTS[index % 6], **{**settings, **sampling})


def text(outputs: list[TokenOutput]) -> str:
    ids = [token for token in tiny.tokens(outputs) if token != EOS]
    return str(TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def is_right(grammar: Grammar, output: str) -> bool:
    if grammar is JSON:
        value = json.loads(output)
        return list(value) == ["name", "age"] and len(value["name"]) <= 6 and 0 <= value["age"] <= 99
    if grammar is CHOICE:
        return output in json.loads(CHOICE.value)
    return re.fullmatch(DIGITS.value if grammar is DIGITS else "(ab)+", output) is not None


MIXED = [JSON, CHOICE, DIGITS, None, GBNF, JSON]


def mixed_batch() -> list[AddRequest]:
    """Constrained and free requests, half of them greedy."""
    return [request(str(i), MIXED[i % 6], i, temperature=float(i % 2), max_tokens=40) for i in range(12)]


@pytest.fixture(scope="module")
def alone(model: Any, grammars: Grammars) -> list[list[int]]:
    """Each request of the mixed batch by itself."""
    runs = [tiny.run(engine(model, grammars), [added])[added.id] for added in mixed_batch()]
    return [tiny.tokens(outputs) for outputs in runs]


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(max_batched_tokens=5), dict(blocks=36), dict(blocks=28, max_batched_tokens=7)],
    ids=["plain", "chunked", "preempting", "chunked-preempting"],
)
@asynchronous
def test_a_mixed_batch(
    model: Any, grammars: Grammars, alone: list[list[int]], settings: dict[str, Any], asynchronous: bool
) -> None:
    made = engine(model, grammars, asynchronous, **settings)
    outputs = tiny.run(made, mixed_batch())
    assert [tiny.tokens(outputs[str(i)]) for i in range(12)] == alone
    finished = 0
    for index in range(12):
        grammar = MIXED[index % 6]
        if grammar is not None and outputs[str(index)][-1].finish_reason == "stop":
            assert is_right(grammar, text(outputs[str(index)])), text(outputs[str(index)])
            finished += 1
    assert finished >= 5
    if "blocks" in settings:
        assert made.scheduler.preemptions > 0


@asynchronous
def test_the_output_ends_with_its_grammar(model: Any, grammars: Grammars, asynchronous: bool) -> None:
    """Without a further step where nothing may follow; ignore_eos, min_tokens and stop tokens change nothing in that."""
    hostile: dict[str, Any] = dict(ignore_eos=True, min_tokens=60)
    added = [request("choice", CHOICE), request("hostile", CHOICE, 1, **hostile), request("json", JSON, 2, **hostile)]
    outputs = tiny.run(engine(model, grammars, asynchronous), added)
    for name, grammar in (("choice", CHOICE), ("hostile", CHOICE), ("json", JSON)):
        assert is_right(grammar, text(outputs[name]))
        assert (outputs[name][-1].finish_reason, outputs[name][-1].stopped_by) == ("stop", None)
        assert EOS not in tiny.tokens(outputs[name])


@asynchronous
def test_the_end_comes_where_the_grammar_accepts(model: Any, grammars: Grammars, asynchronous: bool) -> None:
    """The model wants nothing but to end, and is let only where the output may end."""
    added = request("a", DIGITS, logit_bias={EOS: 100.0})
    free = request("b", DIGITS, 1, min_tokens=8, logit_bias={EOS: 100.0})
    outputs = tiny.run(engine(model, grammars, asynchronous), [added, free])
    assert re.fullmatch("[0-9]{3}", text(outputs["a"]))
    assert (outputs["a"][-1].finish_reason, outputs["a"][-1].stopped_by) == ("stop", EOS)
    assert re.fullmatch("[0-9]{3}-[0-9]+", text(outputs["b"]))
    assert len(tiny.tokens(outputs["b"])) == 8 + 1


def test_max_tokens_cut(model: Any, grammars: Grammars) -> None:
    outputs = tiny.run(engine(model, grammars), [request("a", JSON, max_tokens=4)])
    assert outputs["a"][-1].finish_reason == "length"
    assert len(tiny.tokens(outputs["a"])) == 4


@asynchronous
def test_resume_continues_the_grammar(model: Any, grammars: Grammars, asynchronous: bool) -> None:
    whole = tiny.tokens(tiny.run(engine(model, grammars), [request("a", JSON, 2)])["a"])
    assert len(whole) > 12
    for made in (1, 7, len(whole) - 1):
        rest = AddRequest("b", PROMPTS[2], request("b", JSON, 2).sampling, whole[:made])
        assert tiny.tokens(tiny.run(engine(model, grammars, asynchronous), [rest])["b"]) == whole[made:]


def test_resume_of_a_complete_output_only_ends(model: Any, grammars: Grammars) -> None:
    whole = tiny.tokens(tiny.run(engine(model, grammars), [request("a", CHOICE)])["a"])
    rest = AddRequest("b", PROMPTS[0], request("b", CHOICE).sampling, whole)
    outputs = tiny.run(engine(model, grammars), [rest])["b"]
    assert [(output.token_ids, output.finish_reason, output.stopped_by) for output in outputs] == [([EOS], "stop", EOS)]


def test_logprobs_are_the_models_own(model: Any, grammars: Grammars) -> None:
    outputs = tiny.run(engine(model, grammars), [request("a", DIGITS, logprobs=2, temperature=0.0)])
    with torch.no_grad():
        want = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    got = outputs["a"][0].logprobs
    assert got is not None
    assert got[0].sampled == pytest.approx(float(want[outputs["a"][0].token_ids[0]]), abs=1e-4)
    assert got[0].top_ids == want.topk(2).indices.tolist()


@asynchronous
def test_abort_and_free_requests_alongside(model: Any, grammars: Grammars, asynchronous: bool) -> None:
    made = engine(model, grammars, asynchronous)
    for added in mixed_batch():
        made.add(added)
    for _ in range(4):
        made.step()
    made.abort([str(index) for index in range(12)])
    while made.has_work:
        assert made.step() == []
    made.scheduler.check()
    assert made.scheduler.pool.num_used == 0


@pytest.mark.parametrize(
    ("grammar", "made", "word"),
    [
        (Grammar(kind="json", value='{"type": "objec"}', param="response_format"), [], "response_format.*objec"),
        (Grammar(kind="regex", value="("), [], "unclosed"),
        (CHOICE, [300], "structured_outputs"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    model: Any, grammars: Grammars, grammar: Grammar, made: list[int], word: str
) -> None:
    one = engine(model, grammars)
    with pytest.raises(InvalidRequest, match=word):
        one.add(AddRequest("a", [5], SamplingParams(grammar=grammar), made))
    assert not one.has_work


def test_without_a_tokenizer_grammars_are_refused(model: Any) -> None:
    with pytest.raises(InvalidRequest, match="tokenizer"):
        engine(model, None).add(request("a", CHOICE))


@pytest.mark.parametrize("broken", ["take", "fill"])
@asynchronous
def test_a_matcher_that_fails_ends_its_request_alone(
    model: Any, grammars: Grammars, asynchronous: bool, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(model, grammars, asynchronous)
    made.add(request("bad", JSON))
    made.add(request("good", JSON, 1))
    bad = made.scheduler.requests["bad"].matcher
    original = getattr(Matcher, broken)

    def fail(matcher: Matcher, value: Any) -> None:
        if matcher is bad:
            raise GrammarError("too complex")
        original(matcher, value)

    monkeypatch.setattr(Matcher, broken, fail)
    outputs: list[TokenOutput] = []
    while made.has_work:
        outputs += made.step()
    assert [output.error for output in outputs if output.id == "bad"] == ["the grammar cannot be followed: too complex"]
    assert is_right(JSON, text([output for output in outputs if output.id == "good"]))
    assert made.scheduler.pool.num_used == 0


def test_masks_spread_over_their_rows() -> None:
    """Bit i % 32 of word i // 32 is token i, and rows without a grammar stay as they are."""
    vocab = 70
    masks = TokenMasks.unset([0, 2], vocab)
    masks.bits[:] = 0
    masks.bits[0, 0], masks.bits[0, 2], masks.bits[1, 1] = 1 << 3, 1 << 5, 1 << 31 - 1
    allowed = masks.allowed(vocab, tiny.DEVICE)
    assert allowed.shape == (2, vocab)
    assert [row.nonzero().flatten().tolist() for row in allowed] == [[3, 69], [62]]
    logits = torch.randn(3, vocab, device=tiny.DEVICE)
    sampler = Sampler(4, vocab, [EOS], tiny.DEVICE)
    kept = sampler._constrain(logits, logits, masks)
    assert torch.equal(kept[1], logits[1])
    assert torch.isfinite(kept).sum(-1).tolist() == [2, vocab, 1]


def test_bits_unpack_alike_on_every_device() -> None:
    octets = np.random.default_rng(0).integers(0, 256, (3, 12), dtype=np.uint8)
    want = np.unpackbits(octets, axis=1, count=90, bitorder="little").astype(bool)
    got = unpack_bits(torch.from_numpy(octets).to(tiny.DEVICE), 90)
    assert got.dtype is torch.bool
    assert np.array_equal(got.cpu().numpy(), want)


def test_where_bans_leave_nothing_the_grammar_counts() -> None:
    logits = torch.randn(1, 8, device=tiny.DEVICE)
    banned = logits.clone()
    banned[0, 5] = -torch.inf
    masks = TokenMasks.unset([0], 8)
    masks.bits[:] = 1 << 5
    kept = Sampler(2, 8, [5], tiny.DEVICE)._constrain(banned, logits, masks)
    assert torch.isfinite(kept[0]).nonzero().flatten().tolist() == [5]
