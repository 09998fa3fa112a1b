"""GPT-2 and what was made from its code: GPT-Neo, GPT-J, StarCoder 1 (GPTBigCode)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workers.model.config import DecoderConfig, LayerConfig
from workers.model.families.common import activation, decoder, layer_norm, renamed, with_attention
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(
    prefixes=("transformer.", ""),
    embedding="wte",
    positions="wpe",
    layer="h.{}.",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    attention_output="attn.c_proj",
    mlp_norm="ln_2",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    final_norm="ln_f",
)
_GPT2 = replace(_NAMES, transposed=True)
_GPTJ = replace(
    _NAMES,
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    attention_output="attn.out_proj",
    gate_up=("mlp.fc_in",),
    down="mlp.fc_out",
)

_GPT_NEO = replace(
    _NAMES,
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    attention_output="attn.attention.out_proj",
)


def _renamed(raw: Raw, **defaults: Any) -> Raw:
    words = dict(
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
    )
    return {**defaults, **renamed(raw, **words)}


def _config(raw: Raw, attention: Raw, **changes: Any) -> DecoderConfig:
    mlp = dict(
        size=raw.get("intermediate_size") or 4 * raw["hidden_size"],
        activation=activation(raw.get("activation_function", "gelu_new")),
        gated=False,
        bias=True,
    )
    norm = layer_norm(raw, "layer_norm_epsilon")
    return decoder(raw, norm, attention=attention, mlp=mlp, **{"positions": raw["max_position_embeddings"], **changes})


def gpt2(raw: Raw) -> DecoderConfig:
    raw = _renamed(raw, tie_word_embeddings=True, n_positions=1024, max_position_embeddings=1024)
    attention: Raw = dict(rope=None, qkv_bias=True, output_bias=True)
    if not raw.get("scale_attn_weights", True):
        attention["scale"] = 1.0

    def by_depth(index: int, layer: LayerConfig) -> LayerConfig:
        return with_attention(layer, scale=layer.attention.scale / (index + 1))

    vary = by_depth if raw.get("scale_attn_by_inverse_layer_idx") else None
    return _config(raw, attention, vary=vary, names=_GPT2)


def gpt_bigcode(raw: Raw) -> DecoderConfig:
    raw = _renamed(raw, tie_word_embeddings=True, activation_function="gelu_pytorch_tanh", max_position_embeddings=1024)
    shared = raw.get("multi_query", True)
    attention: Raw = dict(rope=None, qkv_bias=True, output_bias=True)
    if shared:
        attention["num_kv_heads"] = 1
    return _config(raw, attention, names=replace(_NAMES, qkv_grouped=not shared))


def gptj(raw: Raw) -> DecoderConfig:
    raw = _renamed(raw, tie_word_embeddings=False, max_position_embeddings=2048)
    dim = raw["hidden_size"] // raw["num_attention_heads"]
    attention = dict(rope=rope(raw, dim, partial=(raw.get("rotary_dim") or dim) / dim, interleaved=True))
    parallel = dict(wiring="parallel", mlp_norm=None)
    return _config(raw, attention, layer=parallel, positions=0, head_bias=True, names=_GPTJ)


def gpt_neo(raw: Raw) -> DecoderConfig:
    """Its logits are not scaled; every other layer is local, as `attention_types` counts out."""
    raw = renamed(raw, num_attention_heads="num_heads", num_hidden_layers="num_layers")
    raw = {"tie_word_embeddings": True, "max_position_embeddings": 2048, **raw}
    spans = raw.get("attention_types") or [[["global", "local"], raw["num_hidden_layers"] // 2]]
    local = [kind == "local" for kinds, times in spans for kind in list(kinds) * times]
    window = raw.get("window_size", 256)

    def vary(index: int, layer: LayerConfig) -> LayerConfig:
        return with_attention(layer, window=window) if local[index] else layer

    return _config(raw, dict(rope=None, scale=1.0, output_bias=True), vary=vary, names=_GPT_NEO)


FAMILY = Family(
    "GPT",
    "GPT-2, DistilGPT2, GPT-Neo, GPT-J, StarCoder 1 and SantaCoder (GPTBigCode)",
    {
        "GPT2LMHeadModel": gpt2,
        "GPTNeoForCausalLM": gpt_neo,
        "GPTJForCausalLM": gptj,
        "GPTBigCodeForCausalLM": gpt_bigcode,
    },
)
