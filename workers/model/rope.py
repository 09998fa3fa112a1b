"""Rotary position embedding: the frequencies of each kind, and the order of a head's values that the kernels rotate.

Kernels rotate whole heads, value i with value i + head_dim / 2. Checkpoints that rotate a part of each head, or pair
neighbours, have the rows of their q and k projections reordered once, when they are read: q k^T is the same in any order.
What is not rotated has frequency 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.model.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, max_positions: int) -> Tensor:
    """[dim / 2] fp32 rotation frequencies, in radians a position, for contexts of up to `max_positions`.

    dynamic (NTK-aware) and longrope depend on the length of the context. A cached key keeps the rotation that it was written
    with, so here they depend on the longest context that is served, and are the same for all.
    """
    theta = _dynamic_theta(rope, max_positions) if rope.kind == "dynamic" else rope.theta
    frequencies = 1.0 / theta ** (torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_position * frequencies / (2 * math.pi)
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0.0, 1.0)
        return frequencies * (smooth + (1 - smooth) / rope.factor)
    if rope.kind == "yarn":
        stretched = _yarn_ramp(rope)
        return frequencies * (1 - stretched) + frequencies / rope.factor * stretched
    if rope.kind == "longrope":
        factors = rope.long_factors if max_positions > rope.original_max_position else rope.factors
        return frequencies / torch.tensor(factors, dtype=torch.float32)
    return frequencies


def _dynamic_theta(rope: RopeConfig, max_positions: int) -> float:
    """The base that keeps the longest context within the rotations known from training (bloc97 and emozilla, 2023)."""
    stretch = max(max_positions, rope.original_max_position) / rope.original_max_position
    return float(rope.theta * (rope.factor * stretch - (rope.factor - 1)) ** (rope.dim / (rope.dim - 2)))


def _yarn_ramp(rope: RopeConfig) -> Tensor:
    """[dim / 2]: 0 where frequencies stay, 1 where they are divided by the factor (Peng et al. 2023, arXiv:2309.00071)."""

    def pair_that_turns(times: float) -> float:
        wavelength = rope.original_max_position / (times * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(rope.dim // 2).float() - low) / (high - low)).clamp(0.0, 1.0)


def rotation_tables(rope: RopeConfig | None, head_dim: int, max_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position: [max_positions, head_dim / 2] fp32 each."""
    frequencies = torch.zeros(head_dim // 2)
    if rope is None:
        rotated, magnitude = 0, 1.0
    else:
        rotated, magnitude = rope.dim // 2, rope.magnitude
        frequencies[:rotated] = inverse_frequencies(rope, max_positions)
    angles = torch.outer(torch.arange(max_positions).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    cos[:, :rotated] *= magnitude
    sin[:, :rotated] *= magnitude
    return cos, sin


def head_order(rope: RopeConfig | None, head_dim: int) -> Tensor | None:
    """[head_dim] int64: which of a checkpoint's values of a head stands where; None where all stand where they are."""
    if rope is None or (rope.dim == head_dim and not rope.interleaved):
        return None
    rotated = torch.arange(rope.dim)
    first, second = (rotated[0::2], rotated[1::2]) if rope.interleaved else rotated.chunk(2)
    rest = torch.arange(rope.dim, head_dim).chunk(2) if rope.dim < head_dim else (rotated[:0], rotated[:0])
    return torch.cat((first, rest[0], second, rest[1]))
