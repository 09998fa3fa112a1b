"""The engine against transformers on the same weights, under every way of scheduling."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from kernels.prefill_attention import PrefillContext, Span, plan_tiles
from kernels.rope import CacheSlots
from schemas.messages import SamplingParams
from tests.engine import tiny
from workers.engine.engine import InvalidRequest
from workers.engine.warm_up import run_steps, warm_up
from workers.model.batch import Batch
from workers.protocol import AddRequest

pytestmark = pytest.mark.gpu if tiny.DEVICE.type == "cuda" else []
PROMPTS = [random.Random(i).choices(range(3, 211), k=1 + 7 * i) for i in range(6)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.reference()


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return [tiny.greedy(model, prompt, 24) for prompt in PROMPTS]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_logits_are_those_of_transformers(family: str) -> None:
    model = tiny.reference(family)
    ids = torch.tensor(PROMPTS[5])
    ours = tiny.decoder(model)
    size = tiny.BLOCK_SIZE
    shape = (ours.config.num_layers, 2, 12, ours.config.num_kv_heads, size, ours.config.head_dim)
    cache = torch.zeros(shape, device=tiny.DEVICE)
    positions = torch.arange(len(ids), device=tiny.DEVICE)
    spans = [Span(0, 0, len(ids), len(ids))]
    slots = CacheSlots(positions + size, shape[2], ours.config.num_kv_heads, size)
    tables = torch.arange(1, 10, dtype=torch.int32, device=tiny.DEVICE)[None]
    prefill = PrefillContext(spans, tables, torch.from_numpy(plan_tiles(spans)).to(tiny.DEVICE))
    got = ours.forward(Batch(ids.to(tiny.DEVICE), positions, slots, 0, None, prefill, None), cache).cpu()
    with torch.no_grad():
        want = model(ids[None]).logits[0]
    assert (got - want).norm() / want.norm() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(max_running=1),
        dict(max_batched_tokens=5),
        dict(blocks=24),
        dict(blocks=20, max_batched_tokens=7),
        dict(prefix_caching=False),
    ],
    ids=["plain", "one-by-one", "chunked", "preempting", "chunked-preempting", "no-prefix-cache"],
)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_greedy_ids_are_those_of_transformers(
    model: Any, expected: list[list[int]], settings: dict[str, Any], asynchronous: bool
) -> None:
    engine = tiny.engine(model, **settings)
    engine.asynchronous = asynchronous
    outputs = tiny.run(engine, [tiny.request(str(i), prompt) for i, prompt in enumerate(PROMPTS)])
    assert [tiny.tokens(outputs[str(i)]) for i in range(len(PROMPTS))] == expected
    if "blocks" in settings:
        assert engine.scheduler.preemptions > 0
    assert all(outputs[name][-1].finish_reason == "length" for name in outputs)


def test_prefix_hits_change_nothing(model: Any, expected: list[list[int]]) -> None:
    engine = tiny.engine(model)
    first = tiny.run(engine, [tiny.request("a", PROMPTS[5])])
    second = tiny.run(engine, [tiny.request("b", PROMPTS[5]), tiny.request("c", PROMPTS[5])])
    assert tiny.tokens(first["a"]) == tiny.tokens(second["b"]) == tiny.tokens(second["c"]) == expected[5]
    assert first["a"][0].cached_tokens == 0
    assert second["b"][0].cached_tokens == (len(PROMPTS[5]) - 1) // tiny.BLOCK_SIZE * tiny.BLOCK_SIZE


def test_requests_of_one_step_share_their_prefix(model: Any, expected: list[list[int]]) -> None:
    engine = tiny.engine(model, max_batched_tokens=256)
    outputs = tiny.run(engine, [tiny.request(name, PROMPTS[5]) for name in "abc"])
    assert all(tiny.tokens(outputs[name]) == expected[5] for name in "abc")
    assert engine.scheduler.prefix_hit_tokens == 2 * ((len(PROMPTS[5]) - 1) // tiny.BLOCK_SIZE * tiny.BLOCK_SIZE)


def test_a_batch_that_shares_a_prefix(model: Any) -> None:
    """On the GPU its shared blocks are read once; other requests ride along."""
    prompts = [PROMPTS[5] + [index + 3] * (1 + index % 3) for index in range(6)] + PROMPTS[1:3]
    want = [tiny.greedy(model, prompt, 12) for prompt in prompts]
    engine = tiny.engine(model, max_batched_tokens=256)
    warm_up(engine.runner, 256, 256)
    outputs = tiny.run(engine, [tiny.request(str(i), prompt, max_tokens=12) for i, prompt in enumerate(prompts)])
    assert [tiny.tokens(outputs[str(i)]) for i in range(8)] == want


def test_warming_up_leaves_no_trace(model: Any, expected: list[list[int]]) -> None:
    engine = tiny.engine(model)
    run_steps(engine.runner, 600, 256)  # more than a prompt may have
    assert not engine.runner.slots.lengths.any()
    assert tiny.tokens(tiny.run(engine, [tiny.request("a", PROMPTS[1])])["a"]) == expected[1]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_resume_continues_the_same_draws(model: Any, asynchronous: bool) -> None:
    sampling: dict[str, Any] = dict(temperature=1.0, top_p=0.9, seed=3, presence_penalty=0.5, max_tokens=24)
    whole = tiny.tokens(tiny.run(tiny.engine(model), [tiny.request("a", PROMPTS[3], **sampling)])["a"])
    engine = tiny.engine(model)
    engine.asynchronous = asynchronous
    rest = AddRequest("b", PROMPTS[3], SamplingParams(**sampling, ignore_eos=True), whole[:9])
    assert tiny.tokens(tiny.run(engine, [rest])["b"]) == whole[9:]


def test_draws_do_not_depend_on_the_batch(model: Any) -> None:
    alone = tiny.tokens(tiny.run(tiny.engine(model), [tiny.request("x", PROMPTS[2], temperature=1.0, seed=11)])["x"])
    others = [tiny.request(str(i), prompt, temperature=0.7, seed=i) for i, prompt in enumerate(PROMPTS)]
    batch = tiny.run(tiny.engine(model), [*others, tiny.request("x", PROMPTS[2], temperature=1.0, seed=11)])
    assert tiny.tokens(batch["x"]) == alone
    assert len({tuple(tiny.tokens(batch[str(i)])) for i in range(6)}) == 6


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_stop_tokens_and_min_tokens(model: Any, expected: list[list[int]], asynchronous: bool) -> None:
    stop = expected[3][4]
    first = expected[3].index(stop)
    engine = tiny.engine(model)
    engine.asynchronous = asynchronous
    early = tiny.request("early", PROMPTS[3], stop_token_ids=[stop])
    late = tiny.request("late", PROMPTS[3], stop_token_ids=[stop], min_tokens=first + 3)
    outputs = tiny.run(engine, [early, late])
    assert tiny.tokens(outputs["early"]) == expected[3][: first + 1]
    assert (outputs["early"][-1].finish_reason, outputs["early"][-1].stopped_by) == ("stop", stop)
    assert len(tiny.tokens(outputs["late"])) >= first + 3
    assert stop not in tiny.tokens(outputs["late"])[: first + 2]


def test_logit_bias_and_logprobs(model: Any) -> None:
    outputs = tiny.run(tiny.engine(model), [tiny.request("a", PROMPTS[2], logit_bias={17: 100.0}, logprobs=3)])
    assert set(tiny.tokens(outputs["a"])) == {17}
    with torch.no_grad():
        want = model(torch.tensor([PROMPTS[2]])).logits[0, -1].log_softmax(-1)
    got = outputs["a"][0].logprobs
    assert got is not None
    assert got[0].sampled == pytest.approx(float(want[17]), abs=1e-4)
    assert got[0].top_ids == want.topk(3).indices.tolist()
    assert got[0].top_logprobs == pytest.approx(want.topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_abort_frees_everything(model: Any, asynchronous: bool) -> None:
    engine = tiny.engine(model)
    engine.asynchronous = asynchronous
    for index, prompt in enumerate(PROMPTS):
        engine.add(tiny.request(str(index), prompt))
    for _ in range(3):
        engine.step()
    engine.abort([str(index) for index in range(6)] + ["unknown"])
    while engine.has_work:
        assert engine.step() == []
    engine.scheduler.check()
    assert engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize(
    ("added", "word"),
    [
        (tiny.request("a", []), "empty"),
        (tiny.request("a", [211]), "211"),
        (tiny.request("a", [5] * 256), "context of 256"),
        (tiny.request("a", [5], logit_bias={500: 1.0}), "logit_bias"),
        (tiny.request("a", [5] * 200, max_tokens=56), "cache blocks"),
    ],
)
def test_impossible_requests_are_refused(model: Any, added: AddRequest, word: str) -> None:
    engine = tiny.engine(model, blocks=32)
    with pytest.raises(InvalidRequest, match=word):
        engine.add(added)
    assert not engine.has_work
