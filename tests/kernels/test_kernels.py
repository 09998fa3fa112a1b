"""Kernels against their twins on random data, odd shapes, every dtype."""

from __future__ import annotations

import pytest
import torch

from kernels.activation import silu_mul_torch, silu_mul_triton
from kernels.argmax import argmax_torch, argmax_triton
from kernels.matvec import matvec_torch, matvec_triton
from kernels.norm import add_rms_norm_torch, add_rms_norm_triton
from kernels.rope import CacheSlots, Rotation, rope_and_cache_torch, rope_and_cache_triton
from kernels.sampling import apply_penalties, draw, philox_uniform, truncate
from tests.kernels.conftest import error, limit

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
KERNEL_SHAPES = [(1, 8), (3, 48), (5, 576)]


@pytest.mark.parametrize(("tokens", "hidden"), KERNEL_SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_add_rms_norm(tokens: int, hidden: int, with_residual: bool, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.rand(hidden, device=device).to(dtype) + 0.5
    residual = torch.randn(tokens, hidden, device=device).to(dtype) if with_residual else None
    twin = add_rms_norm_torch(x.clone(), None if residual is None else residual.clone(), weight, 1e-5)
    got = add_rms_norm_triton(x, residual, weight, 1e-5)
    assert error(got[0], twin[0]) < limit(dtype)
    assert error(got[1], twin[1]) < limit(dtype)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 3), (3, 2048), (2, 5000)])
def test_argmax(rows: int, vocab: int, dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(rows, vocab, device=device).to(dtype)
    logits[0, vocab // 2] = logits[0, vocab - 1] = 50.0  # the first of two that are largest
    got = argmax_triton(logits)
    assert torch.equal(got, argmax_torch(logits.double()))
    assert got[0] == vocab // 2


@pytest.mark.parametrize(("tokens", "inner"), [(1, 5), (3, 96), (2, 1536)])
def test_silu_mul(tokens: int, inner: int, dtype: torch.dtype, device: str) -> None:
    gate_up = torch.randn(tokens, 2 * inner, device=device).to(dtype)
    assert error(silu_mul_triton(gate_up), silu_mul_torch(gate_up.clone())) < limit(dtype)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 8), (7, 48), (33, 1200)])
@pytest.mark.parametrize("kind", ["plain", "bias", "gated"])
def test_matvec(outputs: int, inputs: int, kind: str, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(1, inputs, device=device).to(dtype)
    weight = torch.randn(outputs * (2 if kind == "gated" else 1), inputs, device=device).to(dtype) / inputs**0.5
    bias = torch.randn(outputs, device=device).to(dtype) if kind == "bias" else None
    want = matvec_torch(x.float(), weight.float(), None if bias is None else bias.float(), kind == "gated")
    assert error(matvec_triton(x, weight, bias, kind == "gated"), want) < limit(dtype)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 8), (3, 3, 16), (4, 1, 64)])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rope_and_cache(heads: int, kv_heads: int, dim: int, with_norm: bool, dtype: torch.dtype, device: str) -> None:
    tokens, block_size = 5, 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    angles = torch.rand(32, dim // 2, device=device) * 6
    positions = torch.tensor([0, 7, 31, 3, 12], device=device)
    slots = CacheSlots(torch.tensor([9, 4, 15, 23, 6], device=device), 6, kv_heads, block_size)
    norms = [torch.rand(dim, device=device).to(dtype) + 0.5 for _ in range(2)] if with_norm else [None, None]
    caches = [torch.full((2, 6, kv_heads, block_size, dim), 3.0, device=device).to(dtype) for _ in range(2)]
    rotation = Rotation(angles.cos(), angles.sin(), positions)
    want = rope_and_cache_torch(qkv.clone(), rotation, caches[0], slots, heads, *norms)
    got = rope_and_cache_triton(qkv, rotation, caches[1], slots, heads, *norms)
    assert error(got, want) < limit(dtype)
    assert error(caches[1], caches[0]) < limit(dtype)


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
