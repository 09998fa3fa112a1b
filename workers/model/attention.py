"""Attention over the paged cache."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.attention import AttentionOptions
from kernels.decode_attention import decode_attention
from kernels.prefill_attention import prefill_attention
from kernels.rope import rope_and_cache
from workers.model.batch import Batch, Step
from workers.model.config import AttentionConfig
from workers.model.linear import Linear
from workers.model.names import WeightNames
from workers.model.qk_norm import QKNorm
from workers.model.rope import head_order
from workers.model.weights import Dense, Weights


class AttentionLike(Protocol):
    def __call__(self, x: Tensor, step: Step, cache: Tensor) -> Tensor:
        """x: [tokens, hidden], normed; returns the same shape. `cache` is one layer's; keys and values go there."""
        ...


def paged_attention(q: Tensor, cache: Tensor, batch: Batch, options: AttentionOptions) -> Tensor:
    """q: [tokens, heads, head_dim]; returns the same shape, contiguous. The step's keys and values are in `cache`."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    count = batch.num_decode
    if batch.decode is not None:
        decode_attention(q[:count], cache, batch.decode, options, out[:count])
    if batch.prefill is not None:
        prefill_attention(q[count:], cache, batch.prefill, options, out[count:])
    return out


class Attention:
    """q, k and v as one product, norms, rotation and cache write as one pass, attention, output."""

    def __init__(self, config: AttentionConfig, hidden: int, weights: Weights, names: WeightNames, table: int) -> None:
        self.config, self.table = config, table
        qkv = _read_qkv(config, hidden, weights, names)
        self.qkv = Linear(*qkv)
        self.output = Linear(
            *weights.linear(names.attention_output, hidden, config.num_heads * config.head_dim, config.output_bias)
        )
        slopes = alibi_slopes(config.num_heads).to(qkv.weight.device) * config.alibi if config.alibi else None
        sinks = weights.wide(names.sinks, (config.num_heads,)) if config.sinks else None
        self.options = AttentionOptions(config.scale, config.window, config.soft_cap, slopes, sinks)
        self.norms: QKNorm | None = None
        self.q_norm: Tensor | None = None
        self.k_norm: Tensor | None = None
        self.eps = 0.0
        if config.qk_norm is not None:
            norms, self.eps = QKNorm(config, config.qk_norm, weights, names), config.qk_norm.eps
            if norms.fuses:
                self.q_norm, self.k_norm = norms.q_weight, norms.k_weight
            else:
                self.norms = norms

    def __call__(self, x: Tensor, step: Step, cache: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.config.clip:
            qkv = qkv.clamp(-self.config.clip, self.config.clip)
        if self.norms is not None:
            qkv = self.norms(qkv)
        rotation, slots = step.rotations[self.table], step.batch.cache_slots
        q = rope_and_cache(qkv, rotation, cache, slots, self.config.num_heads, self.q_norm, self.k_norm, self.eps)
        out = paged_attention(q, cache, step.batch, self.options)
        return self.output(out.view(out.shape[0], -1))


def _read_qkv(config: AttentionConfig, hidden: int, weights: Weights, names: WeightNames) -> Dense:
    """All queries, then all keys, then all values, each head's in the order that is rotated."""
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    dense = weights.stacked(names.qkv, sizes, hidden, config.qkv_bias)
    if names.qkv_grouped:
        groups = torch.arange(sum(sizes)).view(kv_heads, heads // kv_heads + 2, dim)
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        dense = dense.rows(torch.cat([part.flatten() for part in parts]))
    order = head_order(config.rope, dim)
    if order is None:
        return dense
    rows = torch.arange((heads + 2 * kv_heads) * dim).view(-1, dim)
    rows[: heads + kv_heads] = rows[: heads + kv_heads, order]
    return dense.rows(rows.flatten())


def alibi_slopes(heads: int) -> Tensor:
    """[heads] fp32: powers of 2^(-8 / n), n the power of two at or below `heads`, then every other one of those for 2 n
    (Press et al. 2021, arXiv:2108.12409)."""
    base = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (index + 1) / base) for index in range(base)]
    slopes += [2 ** (-4 * (2 * index + 1) / base) for index in range(heads - base)]
    return torch.tensor(slopes, dtype=torch.float32)
