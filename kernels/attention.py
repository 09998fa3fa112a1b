"""What attention of one and of many queries have in common: its options, and the twins' arithmetic.

    o = softmax(s) v,  s = q k^T * scale,  or cap * tanh(q k^T * scale / cap) where logits are capped

With linear biases by distance (ALiBi, Press et al. 2021, arXiv:2108.12409) a head's slope times (key's position - query's)
is added to s. With sinks (Xiao et al. 2023, arXiv:2309.17453, as gpt-oss has them) each head's softmax has one logit more,
to which no value belongs. A query at position p sees the keys from 0 to p or, with a sliding window, those from
p - window + 1 to p.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import triton
import triton.language as tl
from torch import Tensor, cat, inf
from torch.nn.functional import scaled_dot_product_attention

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Of one layer. window: keys a query sees, its own among them; 0: all. soft_cap: bound of the logits; 0: none. slopes,
    sinks: [heads] fp32 of linear biases and of sinks' logits, or None."""

    scale: float
    window: int = 0
    soft_cap: float = 0.0
    slopes: Tensor | None = field(default=None, compare=False)
    sinks: Tensor | None = field(default=None, compare=False)

    @property
    def cap_rate(self) -> float:
        """What `soft_cap` takes; 0 without a cap."""
        return self.scale / self.soft_cap if self.soft_cap else 0.0

    @property
    def log2_scale(self) -> float:
        """Factor from what `soft_cap` returns to logits in units of log2, which exp2 takes."""
        return (self.soft_cap or self.scale) * _LOG2_E

    def first_key(self, position: int) -> int:
        """The first key that a query at `position` sees."""
        return max(0, position - self.window + 1) if self.window else 0

    def most_blocks(self, max_length: int, block_size: int) -> int:
        """Blocks that hold the keys of one query, in contexts of up to `max_length` tokens."""
        blocks = -(-max_length // block_size)
        return min(blocks, 1 + -(-(self.window - 1) // block_size)) if self.window else blocks


@triton.jit
def soft_cap(scores, RATE: tl.constexpr):
    """tanh(scores * RATE): to be multiplied by the cap. RATE 0: `scores` as they are.

    By way of the exponential function, whose rounding is small against 1, the bound, as softmax needs it.
    """
    if RATE > 0:
        decay = tl.exp2(tl.abs(scores) * (-2 * 1.4426950408889634 * RATE))
        size = (1 - decay) / (1 + decay)
        scores = tl.where(scores < 0, -size, size)
    return scores


@triton.jit
def empty_softmax(sinks, heads, valid, counts, SINKS: tl.constexpr, ROWS: tl.constexpr):
    """The maxima and totals [ROWS] of an online softmax that has seen no key yet. heads: [ROWS], whose `sinks` it begins
    with where `counts` is true."""
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        first = valid & counts
        peak = tl.where(first, tl.load(sinks + heads, mask=valid, other=0.0) * 1.4426950408889634, peak)
        total = tl.where(first, 1.0, total)
    return peak, total


def alibi_torch(distance: Tensor, slopes: Tensor) -> Tensor:
    """distance: [..., queries, keys], key's position - query's; slopes: any shape that goes before these two dimensions."""
    return slopes[..., None, None] * distance


def attend_torch(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, options: AttentionOptions, bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """q: [..., queries, head_dim]; keys, values: [..., keys, head_dim]; mask: bool, true where a key is seen, or None where
    query i sees keys 0 to i. bias: [..., queries, keys], added to the logits; goes with a mask. sinks: [..., queries, 1]."""
    if not options.soft_cap and sinks is None:
        given = mask if mask is None or bias is None else bias.to(q.dtype).masked_fill(~mask, -inf)
        return scaled_dot_product_attention(
            q, keys, values, attn_mask=given, is_causal=mask is None, scale=options.scale
        )
    scores = q.float() @ keys.float().mT * (options.cap_rate or options.scale)
    if options.soft_cap:
        scores = scores.tanh() * options.soft_cap
    seen = scores.new_ones(scores.shape[-2:]).tril().bool() if mask is None else mask
    scores = (scores if bias is None else scores + bias).masked_fill(~seen, -inf)
    if sinks is not None:
        scores = cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1)
    weights = scores.softmax(-1)[..., : keys.shape[-2]]
    return (weights @ values.float()).to(q.dtype)
