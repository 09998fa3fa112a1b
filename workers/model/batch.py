"""What attention must know of one step, computed once for all layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Tokens [start, start + count) of the batch: the last `count` positions of a sequence of `context` tokens."""

    start: int
    count: int
    context: int
    block_table: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tokens: the first `num_decode` are one of each decoding sequence, the rest are prefill spans.

    tokens, positions: [tokens] int64. cache_rows, decode_rows, decode_mask: as kernels.rope and kernels.attention take
    them. logit_rows: [rows] int64, the tokens whose logits are wanted, or None for all.
    """

    tokens: Tensor
    positions: Tensor
    cache_rows: Tensor
    num_decode: int
    decode_rows: Tensor | None
    decode_mask: Tensor | None
    prefill: list[PrefillSpan]
    logit_rows: Tensor | None
