"""The weights of a layer's experts, and the gate between their two products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """gate_up: [experts, 2 * inner, hidden], gate first; down: [experts, hidden, inner]; their biases: [experts, 2 * inner]
    and [experts, hidden], or None.

    The gate is silu(gate) * up or, where `limit` is not 0, (min(gate, limit) * sigmoid(alpha * gate)) * (up + 1) with up kept
    within the limit, too, as gpt-oss has it.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    alpha: float = 1.0
    limit: float = 0.0

    @property
    def count(self) -> int:
        return self.gate_up.shape[0]

    @property
    def inner(self) -> int:
        return self.down.shape[2]


@triton.jit
def gated(gate, up, kind: tl.constexpr, alpha, limit, CLAMPED: tl.constexpr):
    """gate, up: fp32, of any one shape; the products' outputs as `kind` has them. Returns fp32."""
    gate = gate.to(kind).to(tl.float32)
    up = up.to(kind).to(tl.float32)
    if CLAMPED:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit) + 1.0
    return gate * tl.sigmoid(alpha * gate) * up


def gated_torch(gate_up: Tensor, experts: Experts) -> Tensor:
    """gate_up: [rows, 2 * inner]; returns [rows, inner]."""
    gate, up = gate_up.chunk(2, dim=-1)
    if experts.limit:
        gate = gate.clamp(max=experts.limit)
        return gate * torch.sigmoid(experts.alpha * gate) * (up.clamp(-experts.limit, experts.limit) + 1)
    return torch.nn.functional.silu(gate) * up
