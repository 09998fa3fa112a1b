"""BLOOM: ALiBi, a norm on the embeddings, plain MLP, biases everywhere."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, layer_norm, renamed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(
    prefixes=("transformer.", ""),
    embedding="word_embeddings",
    embedding_norm="word_embeddings_layernorm",
    layer="h.{}.",
    qkv=("self_attention.query_key_value",),
    qkv_grouped=True,
    attention_output="self_attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="ln_f",
)


def config(raw: Raw) -> DecoderConfig:
    if raw.get("apply_residual_connection_post_layernorm"):
        raise ValueError("apply_residual_connection_post_layernorm is not supported")
    words = dict(hidden_size="n_embed", num_attention_heads="n_head", num_hidden_layers="n_layer")
    raw = {"tie_word_embeddings": True, **renamed(raw, **words)}
    norm = layer_norm(raw, "layer_norm_epsilon")
    return decoder(
        raw,
        norm,
        attention=dict(rope=None, alibi=1.0, qkv_bias=True, output_bias=True),
        mlp=dict(size=4 * raw["hidden_size"], activation="gelu_tanh", gated=False, bias=True),
        embedding_norm=norm,
        max_position=raw.get("seq_length", 2048),
        names=_NAMES,
    )


FAMILY = Family("BLOOM", "BLOOM, BLOOMZ", {"BloomForCausalLM": config})
