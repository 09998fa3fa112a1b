"""Weights in MXFP4: four bits a number (sign, two bits of exponent, one of mantissa), a power of two for each block of 32.

Format: OCP Microscaling Formats (MX) Specification 1.0. A byte holds two numbers, the first in its low half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.model.weights import Weights

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCK = 32
_EXPONENT_BIAS = 127


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """blocks: [rows, columns / 32, 16] uint8; scales: [rows, columns / 32] uint8; returns [rows, columns]."""
    values = torch.tensor([*_MAGNITUDES, *(-size for size in _MAGNITUDES)], device=blocks.device)
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    return torch.ldexp(values[codes.int()], scales.int()[..., None] - _EXPONENT_BIAS).to(dtype).flatten(-2)


def read_mxfp4(weights: Weights, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """The experts' weights of `shape` [experts, rows, columns], from the tensors name_blocks and name_scales."""
    experts, rows, columns = shape
    groups = columns // _BLOCK
    blocks = weights.bytes(f"{name}_blocks", (experts, rows, groups, _BLOCK // 2))
    scales = weights.bytes(f"{name}_scales", (experts, rows, groups))
    out = torch.empty(shape, dtype=dtype, device=blocks.device)
    for expert in range(experts):  # one at a time: what is in between takes ten times the memory
        out[expert] = dequantize(blocks[expert], scales[expert], dtype)
    return out
