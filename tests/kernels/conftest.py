"""Every kernel against its twin: in Triton's interpreter on the CPU, and on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter gets bf16 wrong without saying so
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


@pytest.fixture(params=DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture
def device() -> str:
    torch.manual_seed(0)
    return DEVICE


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error in the 2-norm; NaN never passes a comparison."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def limit(dtype: torch.dtype) -> float:
    return {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
