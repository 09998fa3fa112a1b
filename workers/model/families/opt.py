"""OPT: learned positions that begin at row 2; the 350M model has its norms behind, and narrower embeddings."""

from __future__ import annotations

from workers.model.config import DecoderConfig, NormConfig
from workers.model.families.common import activation, decoder
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_OFFSET = 2
_NAMES = WeightNames(
    prefixes=("model.decoder.", "decoder.", ""),
    positions="embed_positions",
    project_in="project_in",
    project_out="project_out",
    attention_norm="self_attn_layer_norm",
    attention_output="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    gate_up=("fc1",),
    down="fc2",
    final_norm="final_layer_norm",
)


def config(raw: Raw) -> DecoderConfig:
    raw = {"tie_word_embeddings": True, "max_position_embeddings": 2048, **raw}
    affine, bias = raw.get("layer_norm_elementwise_affine", True), raw.get("enable_bias", True)
    norm, before = NormConfig(kind="layer", eps=1e-5, weight=affine, bias=affine), raw.get("do_layer_norm_before", True)
    return decoder(
        raw,
        norm,
        attention=dict(rope=None, qkv_bias=bias, output_bias=bias),
        mlp=dict(
            size=raw["ffn_dim"], activation=activation(raw.get("activation_function", "relu")), gated=False, bias=bias
        ),
        layer=dict(wiring="sequential" if before else "post"),
        final_norm=norm if before and not raw.get("_remove_final_layer_norm") else None,
        positions=raw["max_position_embeddings"] + _OFFSET,
        position_offset=_OFFSET,
        embedding_size=raw.get("word_embed_proj_dim") or 0,
        names=_NAMES,
    )


FAMILY = Family("OPT", "OPT 125M to 66B", {"OPTForCausalLM": config})
