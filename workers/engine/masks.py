"""Which tokens a step may sample, by the grammars of its requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.engine.upload import upload


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """`rows` of a step that follow a grammar, and for each the tokens that it allows: bits [len(rows), words] int32."""

    rows: list[int]
    bits: NDArray[np.int32]

    @classmethod
    def unset(cls, rows: list[int], vocab: int) -> TokenMasks:
        """For matchers to fill, one after another: 64 take 0.3 ms for one schema and 1.6 for thirty, of 49,152 tokens on
        one core; two threads were slower (0.40 against 0.35 ms)."""
        return cls(rows, np.empty((len(rows), -(-vocab // 32)), dtype=np.int32))

    def allowed(self, vocab: int, device: torch.device) -> Tensor:
        """[len(rows), vocab] bool."""
        octets = self.bits.view(np.uint8)
        if device.type == "cpu":  # 0.5 ms for 64 rows of 49,152; the same by torch's shifts 33 ms
            return torch.from_numpy(np.unpackbits(octets, axis=1, count=vocab, bitorder="little")).view(torch.bool)
        return unpack_bits(upload(octets, device), vocab)  # an eighth of the bytes go over the bus


def unpack_bits(octets: Tensor, vocab: int) -> Tensor:
    """octets: [rows, bytes] uint8, lowest bit first. Returns [rows, vocab] bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=octets.device)
    return ((octets[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab].bool()


MaskSource = Callable[[], TokenMasks | None]
"""Asked once a step has been computed and before its tokens are chosen, and only where a row follows a grammar."""


def no_masks() -> None:
    """Of steps without grammars."""
