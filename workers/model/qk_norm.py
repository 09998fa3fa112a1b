"""Norms of q and k, between their projection and their rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.norm import rms_norm
from workers.model.config import AttentionConfig, NormConfig
from workers.model.names import WeightNames
from workers.model.rope import head_order
from workers.model.weights import Weights


class QKNorm:
    """Weights in the order of the rotation. fuses: whether the rotation's kernel can do it in passing."""

    def __init__(self, config: AttentionConfig, norm: NormConfig, weights: Weights, names: WeightNames) -> None:
        self.config, self.norm = config, norm
        self.fuses = self.norm.kind == "rms" and config.qk_norm_over == "head"
        self.q_weight, self.q_bias = self._read(weights, names.q_norm, config.num_heads)
        self.k_weight, self.k_bias = self._read(weights, names.k_norm, config.num_kv_heads)

    def _read(self, weights: Weights, name: str, heads: int) -> tuple[Tensor, Tensor | None]:
        dim = self.config.head_dim
        shape = {"head": (dim,), "heads": (heads, dim), "whole": (heads * dim,)}[self.config.qk_norm_over]
        weight = weights.norm_weight(name, self.norm, shape)
        bias = weights.tensor(f"{name}.bias", shape) if self.norm.bias else None
        return self._ordered(weight), None if bias is None else self._ordered(bias)

    def _ordered(self, values: Tensor) -> Tensor:
        order = head_order(self.config.rope, self.config.head_dim)
        if order is None:
            return values
        return values.view(-1, self.config.head_dim)[:, order.to(values.device)].reshape(values.shape)

    def __call__(self, qkv: Tensor) -> Tensor:
        """[tokens, (heads + 2 kv_heads) * head_dim], q and k normed."""
        config = self.config
        keys, values = config.num_heads * config.head_dim, (config.num_heads + config.num_kv_heads) * config.head_dim
        q, k, v = qkv[:, :keys], qkv[:, keys:values], qkv[:, values:]
        return torch.cat(
            (self._apply(q, self.q_weight, self.q_bias), self._apply(k, self.k_weight, self.k_bias), v), -1
        )

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.config.qk_norm_over == "whole":
            return self._normalise(x, weight, bias)
        heads = x.reshape(x.shape[0], -1, self.config.head_dim)
        return self._normalise(heads, weight, bias).view(x.shape)

    def _normalise(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.norm.kind == "rms":
            return rms_norm(x, weight, self.norm.eps)
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        out = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.norm.eps) * weight.float()
        return (out if bias is None else out + bias.float()).to(x.dtype)
