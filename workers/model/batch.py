"""What the decoder must know of one step, computed once for all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kernels.decode_attention import DecodeContext
from kernels.prefill_attention import PrefillContext
from kernels.rope import CacheSlots, Rotation


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tokens: the first `num_decode` are one of each decoding sequence, the rest are prefill spans, whose
    `start` counts from the first prefill token.

    tokens, positions: [tokens] int64. logit_rows: [rows] int64, the tokens whose logits are wanted, or None for all.
    others: the same batch for the other groups of layers (see `workers.model.kv_layout`), whose blocks are others.
    """

    tokens: Tensor
    positions: Tensor
    cache_slots: CacheSlots
    num_decode: int
    decode: DecodeContext | None
    prefill: PrefillContext | None
    logit_rows: Tensor | None
    others: list[Batch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """A batch, and the rotations of its tokens, one for each rope of the model."""

    batch: Batch
    rotations: list[Rotation]
