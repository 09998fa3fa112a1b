"""MPT: ALiBi, layer norms without bias, no biases at all."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, layer_norm, renamed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(
    prefixes=("transformer.", ""),
    embedding="wte",
    layer="blocks.{}.",
    attention_norm="norm_1",
    qkv=("attn.Wqkv",),
    attention_output="attn.out_proj",
    mlp_norm="norm_2",
    gate_up=("ffn.up_proj",),
    down="ffn.down_proj",
    final_norm="norm_f",
)


def config(raw: Raw) -> DecoderConfig:
    words = dict(hidden_size="d_model", num_attention_heads="n_heads", num_hidden_layers="n_layers")
    raw = {"tie_word_embeddings": True, **renamed(raw, **words)}
    own = raw.get("attn_config") or {}
    if own.get("attn_type", "multihead_attention") != "multihead_attention" or own.get("qk_ln"):
        raise ValueError("attn_config: multi-query attention and qk_ln are not supported")
    if not own.get("alibi", True) or own.get("alibi_bias_max", 8) != 8 or own.get("prefix_lm"):
        raise ValueError("attn_config: only causal attention with alibi of alibi_bias_max 8 is supported")
    attention: Raw = dict(rope=None, alibi=1.0, clip=own.get("clip_qkv") or 0.0)
    if own.get("softmax_scale"):
        attention["scale"] = own["softmax_scale"]
    return decoder(
        raw,
        layer_norm(raw, "layer_norm_epsilon", bias=False),
        attention=attention,
        mlp=dict(size=4 * raw["hidden_size"], activation="gelu", gated=False),
        max_position=raw.get("max_seq_len", 2048),
        names=_NAMES,
    )


FAMILY = Family("MPT", "MPT 7B, 30B", {"MptForCausalLM": config})
