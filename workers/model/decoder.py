"""The one decoder. Families differ in its config, not in its code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import AttentionOptions
from kernels.decode_attention import decode_attention
from kernels.norm import add_rms_norm
from kernels.prefill_attention import prefill_attention
from kernels.rope import Rotation, rope_and_cache
from workers.model.batch import Batch
from workers.model.config import DecoderConfig, RopeConfig
from workers.model.linear import Linear

GetWeight = Callable[..., Tensor]
"""get(name, shape): the tensor of that checkpoint name, on the model's device and in its dtype."""


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] fp32 rotation frequencies, in radians a position."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_position * frequencies / (2 * math.pi)
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0.0, 1.0)
        return frequencies * (smooth + (1 - smooth) / rope.factor)
    return frequencies


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer; q, k and v, and gate and up, are one product each."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


def build_layer(config: DecoderConfig, index: int, get: GetWeight) -> Layer:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    prefix = f"model.layers.{index}."
    q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim

    def fused(names: list[str], sizes: list[int], inputs: int, bias: bool) -> Linear:
        weight = torch.cat([get(f"{prefix}{n}.weight", (s, inputs)) for n, s in zip(names, sizes, strict=True)])
        offset = (
            torch.cat([get(f"{prefix}{n}.bias", (s,)) for n, s in zip(names, sizes, strict=True)]) if bias else None
        )
        return Linear(weight, offset)

    def norm(name: str, size: int) -> Tensor:
        return get(f"{prefix}{name}.weight", (size,))

    qkv = [f"self_attn.{n}_proj" for n in "qkv"]
    return Layer(
        input_norm=norm("input_layernorm", hidden),
        qkv=fused(qkv, [q_size, kv_size, kv_size], hidden, config.qkv_bias),
        q_norm=norm("self_attn.q_norm", dim) if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm", dim) if config.qk_norm else None,
        output=fused(["self_attn.o_proj"], [hidden], q_size, config.output_bias),
        mlp_norm=norm("post_attention_layernorm", hidden),
        gate_up=fused(["mlp.gate_proj", "mlp.up_proj"], [inner, inner], hidden, config.mlp_bias),
        down=fused(["mlp.down_proj"], [hidden], inner, config.mlp_bias),
    )


class Decoder:
    """`forward` computes one batch; keys and values go to `kv_cache` [layers, 2, blocks, kv_heads, block_size, head_dim]."""

    def __init__(self, config: DecoderConfig, get: GetWeight, max_positions: int) -> None:
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = get("model.embed_tokens.weight", shape)
        self.layers = [build_layer(config, index, get) for index in range(config.num_layers)]
        self.final_norm = get("model.norm.weight", (config.hidden_size,))
        self.head = Linear(self.embedding if config.tie_embeddings else get("lm_head.weight", shape))
        angles = torch.outer(torch.arange(max_positions).float(), inverse_frequencies(config.rope, config.head_dim))
        self.cos = angles.cos().to(self.embedding.device)
        self.sin = angles.sin().to(self.embedding.device)

    def forward(self, batch: Batch, kv_cache: Tensor) -> Tensor:
        """Logits [rows, vocab] in the model's dtype."""
        eps = self.config.norm_eps
        x = self.embedding[batch.tokens]
        rotation = Rotation(self.cos, self.sin, batch.positions)
        residual: Tensor | None = None
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            x, residual = add_rms_norm(x, residual, layer.input_norm, eps)
            x = self._attention(layer, x, rotation, batch, cache)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.down(layer.gate_up.gated(x))
        if batch.logit_rows is not None:
            assert residual is not None
            x, residual = x[batch.logit_rows], residual[batch.logit_rows]
        x, _ = add_rms_norm(x, residual, self.final_norm, eps)
        return self.head(x)

    def _attention(self, layer: Layer, x: Tensor, rotation: Rotation, batch: Batch, cache: Tensor) -> Tensor:
        config = self.config
        options = AttentionOptions(config.head_dim**-0.5)
        q = rope_and_cache(
            layer.qkv(x),
            rotation,
            cache,
            batch.cache_slots,
            config.num_heads,
            layer.q_norm,
            layer.k_norm,
            config.norm_eps,
        )
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        count = batch.num_decode
        if batch.decode is not None:
            decode_attention(q[:count], cache, batch.decode, options, out[:count])
        if batch.prefill is not None:
            prefill_attention(q[count:], cache, batch.prefill, options, out[count:])
        return layer.output(out.view(out.shape[0], -1))
