"""Falcon: 7B (one kv head, parallel), 40B, 180B and 11B (the new decoder architecture), falcon-rw (ALiBi). Falcon 3 is a
Llama."""

from __future__ import annotations

from dataclasses import replace

from workers.model.config import DecoderConfig
from workers.model.families.common import activation, decoder, layer_norm, renamed
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(
    prefixes=("transformer.", ""),
    embedding="word_embeddings",
    layer="h.{}.",
    qkv=("self_attention.query_key_value",),
    attention_output="self_attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="ln_f",
)
_DEFAULTS: Raw = dict(
    parallel_attn=True, multi_query=True, new_decoder_architecture=False, alibi=False, tie_word_embeddings=True
)


def config(raw: Raw) -> DecoderConfig:
    words = dict(hidden_size="n_embed", num_attention_heads="n_head", num_hidden_layers="n_layer")
    raw = {**_DEFAULTS, **renamed(raw, **words)}
    norm = layer_norm(raw, "layer_norm_epsilon")
    dim, new, bias = (
        raw["hidden_size"] // raw["num_attention_heads"],
        raw["new_decoder_architecture"],
        raw.get("bias", False),
    )
    two_norms = (raw.get("num_ln_in_parallel_attn") or 2) == 2 if new else not raw["parallel_attn"]
    grouped = new or not raw["multi_query"]
    names = replace(_NAMES, qkv_grouped=grouped)
    if new and two_norms:
        names = replace(names, attention_norm="ln_attn", mlp_norm="ln_mlp")
    return decoder(
        raw,
        norm,
        attention=dict(
            num_kv_heads=(raw.get("num_kv_heads") or raw["num_attention_heads"]) if grouped else 1,
            rope=None if raw["alibi"] else rope(raw, dim),
            alibi=dim**-0.5 if raw["alibi"] else 0.0,  # it scales the biases together with the logits
            qkv_bias=bias,
            output_bias=bias,
        ),
        mlp=dict(
            size=raw.get("ffn_hidden_size") or 4 * raw["hidden_size"],
            activation=activation(raw.get("activation", "gelu")),
            gated=False,
            bias=bias,
        ),
        layer=dict(
            wiring="parallel" if raw["parallel_attn"] or new else "sequential", mlp_norm=norm if two_norms else None
        ),
        names=names,
    )


FAMILY = Family("Falcon", "Falcon 7B, 40B, 180B, Falcon 2 11B, falcon-rw", {"FalconForCausalLM": config})
