"""Sampling: the kernels against their twin, the twin against definitions."""

from __future__ import annotations

import pytest
import torch

from kernels.sampling import (
    SamplingRows,
    apply_penalties,
    draw,
    philox_uniform,
    sample_torch,
    sample_triton,
    truncate,
)

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []


def sampling_rows(
    count: int, device: str, *, top_k: bool = False, top_p: bool = False, min_p: bool = False, greedy: bool = False
) -> SamplingRows:
    """Random settings of `count` rows, whose slots are shuffled; some rows leave each setting off."""
    floats = torch.zeros(count + 3, 6)
    floats[:, 0] = torch.rand(count + 3) + 0.5
    floats[:, 1] = torch.rand(count + 3) * 0.9 + 0.1 if top_p else 1.0
    floats[::4, 1] = 1.0
    floats[::3, 2] = torch.rand(len(floats[::3])) * 0.2 if min_p else 0.0
    floats[::5, 0] = 0.0 if greedy else 1.0
    integers = torch.zeros(count + 3, 3, dtype=torch.int64)
    integers[1::2, 0] = torch.randint(1, 60, (len(integers[1::2]),)) if top_k else 0
    integers[:, 1] = torch.randint(-(2**62), 2**62, (count + 3,))
    slots = torch.randperm(count + 3)[:count]
    positions = torch.randint(0, 2**33, (count,))
    return SamplingRows(*(part.to(device) for part in (slots, floats, integers, positions)), top_k, top_p)


SETTINGS = [
    dict(),
    dict(greedy=True),
    dict(top_k=True),
    dict(top_p=True),
    dict(min_p=True),
    dict(top_k=True, top_p=True, min_p=True, greedy=True),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "plain")
@pytest.mark.parametrize(("count", "vocab"), [(1, 7), (3, 2048), (17, 2100)])
def test_sample(settings: dict[str, bool], count: int, vocab: int, dtype: torch.dtype, device: str) -> None:
    """Equal tokens, but where the sums of kernel and twin round to two sides of a draw: then neighbours in what is kept."""
    logits = (torch.randn(count, vocab, device=device) * 3).to(dtype)
    logits[:, ::11] = -torch.inf
    rows = sampling_rows(count, device, **settings)
    want, got = sample_torch(logits, rows), sample_triton(logits, rows)
    assert (got != want).sum() <= count // 16
    temperature = rows.floats[rows.slots, 0]
    scaled = logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    kept = truncate(scaled, rows.integers[rows.slots, 0], rows.floats[rows.slots, 1], rows.floats[rows.slots, 2])
    assert (kept.gather(1, got[:, None]) > -torch.inf).all()


def test_flat_distributions_are_cut_where_they_should(device: str) -> None:
    """All logits equal: top-p keeps them all, since ties stay in; nearly equal ones: half of them."""
    count, vocab = 18, 2500
    rows = sampling_rows(count, device, top_p=True)
    rows.floats[:, 0], rows.floats[:, 1] = 1.0, 0.5
    ids = sample_triton(torch.zeros(count, vocab, device=device), rows)
    assert (ids > vocab // 2).any()
    falling = torch.linspace(0.01, 0.0, vocab, device=device).expand(count, vocab).contiguous()
    ids = sample_triton(falling, rows)
    assert int(ids.max()) < vocab * 0.501
    assert int(ids.max()) > vocab * 0.35


def test_draws_do_not_depend_on_the_batch(dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(20, 2100, device=device).to(dtype)
    rows = sampling_rows(20, device, top_p=True)
    whole = sample_triton(logits, rows)
    for start, end in ((0, 1), (3, 9), (19, 20)):
        part = SamplingRows(rows.slots[start:end], rows.floats, rows.integers, rows.positions[start:end], False, True)
        assert torch.equal(sample_triton(logits[start:end].contiguous(), part), whole[start:end])


def test_philox_is_the_published_one(device: str) -> None:
    """Philox4x32-10 of counter 0 and key 0 begins with 0x6627e8d5 (Random123's known answers)."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    assert float(philox_uniform(zero, zero)) == pytest.approx(((0x6627E8D5 >> 8) + 0.5) / 2**24, abs=1e-9)


def test_uniform_numbers_are_uniform_and_independent_of_the_rest(device: str) -> None:
    seeds = torch.arange(20_000, device=device)
    numbers = philox_uniform(seeds, torch.full_like(seeds, 17))
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(philox_uniform(seeds[5:6], torch.tensor([17], device=device)), numbers[5:6])


def test_draws_follow_the_distribution(device: str) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf], device=device).expand(50_000, 4)
    seeds = torch.arange(50_000, device=device)
    ids = draw(logits, philox_uniform(seeds, torch.zeros_like(seeds)))
    got = torch.bincount(ids, minlength=4) / 50_000
    assert torch.allclose(got.cpu(), logits[0].softmax(-1).cpu(), atol=0.01)


@pytest.mark.parametrize("vocab", [7, 3000])
def test_truncation(vocab: int, device: str) -> None:
    logits = torch.randn(4, vocab, device=device) * 2
    top_k = torch.tensor([0, 3, 0, 2], device=device)
    top_p = torch.tensor([1.0, 1.0, 0.6, 0.9], device=device)
    min_p = torch.tensor([0.2, 0.0, 0.0, 0.0], device=device)
    kept = truncate(logits, top_k, top_p, min_p) > -torch.inf
    probabilities = logits.softmax(-1)
    assert torch.equal(kept[0], probabilities[0] >= 0.2 * probabilities[0].max() * (1 - 1e-5))
    assert kept[1].sum() == 3
    ordered, order = probabilities[2].sort(descending=True)
    count = int((ordered.cumsum(-1) - ordered < 0.6).sum())
    assert set(kept[2].nonzero()[:, 0].tolist()) == set(order[:count].tolist())
    pair = logits[3].topk(2).values.softmax(-1)
    assert kept[3].sum() == (1 if pair[0] >= 0.9 else 2)


def test_penalties(device: str) -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 3.0]], device=device)
    counts = torch.tensor([[2, 0, 0, 1]], dtype=torch.int32, device=device)
    in_prompt = torch.tensor([[False, True, False, False]], device=device)
    one = torch.ones(1, device=device)
    got = apply_penalties(logits, counts, in_prompt, 2 * one, 0.5 * one, 0.25 * one)
    assert got.tolist() == [[2 / 2 - 1.0 - 0.25, -4.0, 1.0, 3 / 2 - 0.5 - 0.25]]
