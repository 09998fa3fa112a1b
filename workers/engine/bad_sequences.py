"""Token sequences that an output never completes, followed on the device: the host knows a token one step late."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ANY, NOTHING = -1, -2
"""In place of a token id: any token matches; no token yet."""


class BadSequences:
    """The sequences of one slot, and the last tokens of its output, which is `output` so far."""

    def __init__(self, sequences: Sequence[Sequence[int]], output: Sequence[int], device: torch.device) -> None:
        length = max(1, *(len(sequence) - 1 for sequence in sequences))
        beginnings = [[ANY] * (length - len(sequence) + 1) + list(sequence[:-1]) for sequence in sequences]
        recent = [NOTHING] * length + list(output)
        self._beginnings = torch.tensor(beginnings, device=device)  # [sequences, length]
        self._ends = torch.tensor([sequence[-1] for sequence in sequences], device=device)  # [sequences]
        self._recent = torch.tensor(recent[-length:], device=device)  # [length]

    def rule_out(self, logits: Tensor) -> None:
        """Set to minus infinity, in place, the logits [vocab] of tokens that would complete a sequence now."""
        matches = ((self._beginnings == self._recent) | (self._beginnings == ANY)).all(-1)
        logits.index_add_(0, self._ends, torch.where(matches, -torch.inf, 0.0).to(logits.dtype))

    def take(self, token_id: Tensor) -> None:
        """Append the sampled token, [1]."""
        self._recent = torch.cat([self._recent[1:], token_id])
