"""The gate of a gated MLP: act(gate) * up."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up. gate_up: [tokens, 2 * intermediate], gate first; returns [tokens, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)
