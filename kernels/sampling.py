"""From logits to token ids, batched, with counter-based noise.

The draw at a position is a pure function of (seed, position): one uniform number from Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") picks the token where the cumulative distribution passes it. A job that is run
again, elsewhere and in another batch, therefore draws the same tokens from the same distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FIRST_SORTED = 1024


def philox_uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """Uniform fp32 numbers in (0, 1) for int64 seeds and counters of any one shape, 24 random bits each."""
    c0, c1 = counter & _MASK, (counter >> 32) & _MASK
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return ((c0 >> 8).float() + 0.5) * 2.0**-24


def apply_penalties(
    logits: Tensor, counts: Tensor, in_prompt: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Penalise seen tokens. logits: [rows, vocab] fp32; counts: [rows, vocab] int32 of the output; in_prompt: bool;
    the penalties: [rows]. Repetition divides positive and multiplies negative logits of prompt and output tokens
    (Keskar et al. 2019, arXiv:1909.05858); frequency and presence subtract by the output alone, as OpenAI documents."""
    seen = (counts > 0) | in_prompt
    factor = torch.where(seen, repetition[:, None], 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - frequency[:, None] * counts - presence[:, None] * (counts > 0)


def truncate(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Set the logits outside top-k, top-p (the nucleus of Holtzman et al. 2019) and min-p to -inf.

    logits: [rows, vocab] fp32 after temperature. top_k: [rows] int64, 0 or less is off; top_p, min_p: [rows] fp32. Ties
    at a boundary stay in.
    """
    vocab = logits.shape[-1]
    peak = logits.max(-1, keepdim=True).values
    floor = torch.where(min_p > 0, peak[:, 0] + min_p.log(), -torch.inf)
    total = (logits - peak).exp().sum(-1, keepdim=True)
    limit = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)[:, None]
    for width in dict.fromkeys((min(_FIRST_SORTED, vocab), vocab)):
        ordered = logits.topk(width, dim=-1).values
        inside_k = torch.arange(width, device=logits.device) < limit
        mass = torch.where(inside_k, (ordered - peak).exp(), 0.0)
        # top-p is measured on what top-k leaves
        kept_mass = torch.where(limit[:, 0] >= vocab, total[:, 0], mass.sum(-1))
        before = mass.cumsum(-1) - mass
        kept = inside_k & (before < (top_p * kept_mass)[:, None])
        settled = (~kept[:, -1]) | (top_p >= 1.0) & (limit[:, 0] >= vocab)
        if width == vocab or bool(settled.all()):
            break
    last = ordered.gather(-1, (kept.sum(-1, keepdim=True) - 1).clamp(min=0))[:, 0]
    nothing_cut = (top_p >= 1.0) & (limit[:, 0] >= vocab)
    threshold = torch.maximum(floor, torch.where(nothing_cut, -torch.inf, last))
    return logits.masked_fill(logits < threshold[:, None], -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample each row of fp32 logits [rows, vocab] with its uniform number [rows]; returns ids [rows] int64."""
    cumulative = logits.softmax(-1).cumsum(-1)
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
