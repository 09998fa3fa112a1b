"""Kernels against their twins on random data, odd shapes, every dtype."""

from __future__ import annotations

import pytest
import torch

from kernels.activation import silu_mul_torch, silu_mul_triton
from kernels.argmax import argmax_torch, argmax_triton
from kernels.matvec import matvec_torch, matvec_triton
from kernels.norm import add_rms_norm_torch, add_rms_norm_triton
from kernels.rope import CacheSlots, Rotation, rope_and_cache_torch, rope_and_cache_triton
from tests.kernels.conftest import error, limit

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
KERNEL_SHAPES = [(1, 8), (3, 48), (5, 576)]


@pytest.mark.parametrize(("tokens", "hidden"), KERNEL_SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_add_rms_norm(
    tokens: int, hidden: int, with_residual: bool, wide: bool, dtype: torch.dtype, device: str
) -> None:
    """wide: weights in float32 whatever x is, as those are that a checkpoint holds less 1."""
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.rand(hidden, device=device).to(torch.float32 if wide else dtype) + 0.5
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


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 8), (3, 3, 16), (4, 1, 64), (2, 1, 80)])
@pytest.mark.parametrize("norm", ["none", "as x", "float32"])
def test_rope_and_cache(heads: int, kv_heads: int, dim: int, norm: str, dtype: torch.dtype, device: str) -> None:
    tokens, block_size = 5, 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    angles = torch.rand(32, dim // 2, device=device) * 6
    positions = torch.tensor([0, 7, 31, 3, 12], device=device)
    slots = CacheSlots(torch.tensor([9, 4, 15, 23, 6], device=device), 6, kv_heads, block_size)
    kind = torch.float32 if norm == "float32" else dtype
    norms = [None if norm == "none" else torch.rand(dim, device=device).to(kind) + 0.5 for _ in range(2)]
    caches = [torch.full((2, 6, kv_heads, block_size, dim), 3.0, device=device).to(dtype) for _ in range(2)]
    rotation = Rotation(angles.cos(), angles.sin(), positions)
    want = rope_and_cache_torch(qkv.clone(), rotation, caches[0], slots, heads, *norms)
    got = rope_and_cache_triton(qkv, rotation, caches[1], slots, heads, *norms)
    assert error(got, want) < limit(dtype)
    assert error(caches[1], caches[0]) < limit(dtype)
