"""Heads of every size that models have, and the widths in which the kernels hold them."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import AttentionOptions
from tests.kernels.conftest import DEVICE
from tests.kernels.test_attention import PLAIN, alibi, check_decode, check_prefill, spans_of

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []
DIMS = [64, 80, 96, 112, 128, 192, 256] if DEVICE == "cuda" else [80, 112]
OPTIONS = [PLAIN, AttentionOptions(0.1, window=37, soft_cap=5.0), alibi(4)] if DEVICE == "cuda" else [PLAIN]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dim", DIMS)
def test_decode(dim: int, options: AttentionOptions, dtype: torch.dtype, device: str) -> None:
    check_decode(spans_of([(1, 5), (1, 70)]), (4, 2, dim), options, dtype, device)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dim", DIMS)
def test_prefill(dim: int, options: AttentionOptions, dtype: torch.dtype, device: str) -> None:
    check_prefill(
        spans_of([(20, 50), (130, 130)] if DEVICE == "cuda" else [(20, 50)]), (4, 2, dim), options, dtype, device
    )
