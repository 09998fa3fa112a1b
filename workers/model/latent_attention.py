"""Attention by latents, with keys and values cached as each head has them; values are padded to the width of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import AttentionOptions
from kernels.rope import rope_and_cache
from workers.model.attention import paged_attention
from workers.model.batch import Step
from workers.model.config import LatentAttentionConfig
from workers.model.linear import Linear
from workers.model.names import WeightNames
from workers.model.rope import head_order
from workers.model.weights import Weights


class LatentAttention:
    """Heads are kept in the order of the rotation: of each half of a head, first what is rotated, then what is not."""

    def __init__(
        self, config: LatentAttentionConfig, hidden: int, weights: Weights, names: WeightNames, table: int
    ) -> None:
        self.config, self.table = config, table
        heads, rank = config.num_heads, config.kv_rank
        # of a head whose rotated values come first; in checkpoints they come last
        order = head_order(config.rope, config.head_dim)
        order = torch.arange(config.head_dim) if order is None else order
        self.query = _Query(config, hidden, weights, names, (order + config.plain_dim) % config.head_dim)
        rotated = rank + order[order < config.rope_dim]
        down = weights.linear(names.kv_down, rank + config.rope_dim, hidden, config.bias)
        self.kv_down = Linear(*down.rows(torch.cat((torch.arange(rank), rotated))))
        self.kv_norm = weights.norm(names.kv_down_norm, config.norm, rank)
        self.kv_up = Linear(*weights.linear(names.kv_up, heads * (config.plain_dim + config.value_dim), rank, False))
        output = weights.linear(names.attention_output, hidden, heads * config.value_dim, config.bias)
        self.output = Linear(*output)
        self.options = AttentionOptions(config.scale, config.window)

    def __call__(self, x: Tensor, step: Step, cache: Tensor) -> Tensor:
        config, tokens = self.config, x.shape[0]
        down = self.kv_down(x)
        plain, values = self._expanded(down[:, : config.kv_rank].contiguous())
        qkv = x.new_zeros(tokens, 3, config.num_heads, config.head_dim)
        qkv[:, 0] = self.query(x)
        keys, half = qkv[:, 1].view(tokens, config.num_heads, 2, -1), config.rope_dim // 2
        keys[..., :half] = down[:, config.kv_rank :].reshape(tokens, 1, 2, half)
        keys[..., half:] = plain.reshape(tokens, config.num_heads, 2, -1)
        qkv[:, 2, :, : config.value_dim] = values
        rotation, slots = step.rotations[self.table], step.batch.cache_slots
        q = rope_and_cache(qkv.view(tokens, -1), rotation, cache, slots, config.num_heads)
        out = paged_attention(q, cache, step.batch, self.options)
        return self.output(out[:, :, : config.value_dim].reshape(tokens, -1))

    def _expanded(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The unrotated part of each head's key [tokens, heads, plain_dim], and its value [tokens, heads, value_dim]."""
        config = self.config
        expanded = self.kv_up(self.kv_norm(latent)).view(len(latent), config.num_heads, -1)
        return expanded[..., : config.plain_dim], expanded[..., config.plain_dim :]


class _Query:
    def __init__(
        self, config: LatentAttentionConfig, hidden: int, weights: Weights, names: WeightNames, order: Tensor
    ) -> None:
        self.heads, rank = config.num_heads, config.query_rank
        self.down = Linear(*weights.linear(names.query_down, rank, hidden, config.bias)) if rank else None
        self.norm = weights.norm(names.query_down_norm, config.norm if rank else None, rank)
        name, inputs = (names.query_up, rank) if rank else (names.qkv[0], hidden)
        rows = torch.arange(self.heads)[:, None] * config.head_dim + order
        self.up = Linear(*weights.linear(name, self.heads * config.head_dim, inputs, False).rows(rows.flatten()))

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, heads, head_dim]"""
        latent = x if self.down is None else self.norm(self.down(x))
        return self.up(latent).view(len(x), self.heads, -1)
