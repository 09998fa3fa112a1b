"""GPT-NeoX and Pythia: parallel with two norms, a part of each head rotated."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import activation, decoder, layer_norm
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(
    prefixes=("gpt_neox.", ""),
    embedding="embed_in",
    qkv=("attention.query_key_value",),
    qkv_grouped=True,
    attention_output="attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="final_layer_norm",
    heads=("embed_out", "lm_head"),
)


def config(raw: Raw) -> DecoderConfig:
    raw = {**raw, "rope_theta": raw.get("rope_theta") or raw.get("rotary_emb_base")}
    dim, bias = raw["hidden_size"] // raw["num_attention_heads"], raw.get("attention_bias", True)
    parallel = raw.get("use_parallel_residual", True)
    return decoder(
        raw,
        layer_norm(raw),
        attention=dict(rope=rope(raw, dim, partial=raw.get("rotary_pct", 0.25)), qkv_bias=bias, output_bias=bias),
        mlp=dict(activation=activation(raw.get("hidden_act", "gelu")), gated=False, bias=True),
        layer=dict(wiring="parallel" if parallel else "sequential"),
        names=_NAMES,
    )


FAMILY = Family("GPT-NeoX", "GPT-NeoX 20B, Pythia, Dolly, RedPajama", {"GPTNeoXForCausalLM": config})
