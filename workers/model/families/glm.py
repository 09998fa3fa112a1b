"""GLM-4: neighbours rotated in half of each head, a fused gate; GLM-4-0414 has norms on either side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, rms
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(gate_up=("mlp.gate_up_proj",))
_SANDWICH = replace(_NAMES, attention_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm")


def _config(raw: Raw, names: WeightNames, **layer: Any) -> DecoderConfig:
    bias = raw.get("attention_bias", True)
    attention = dict(rope=rope(raw, head_dim(raw), partial=0.5, interleaved=True), qkv_bias=bias, output_bias=False)
    return decoder(raw, rms(raw, 1.5625e-7), attention=attention, layer=layer, names=names)


def glm(raw: Raw) -> DecoderConfig:
    return _config({"head_dim": 128, **raw}, _NAMES)


def glm4(raw: Raw) -> DecoderConfig:
    norm = rms(raw, 1.5625e-7)
    return _config({"head_dim": 128, **raw}, _SANDWICH, attention_post_norm=norm, mlp_post_norm=norm)


FAMILY = Family("GLM", "GLM-4 9B, GLM-4-0414 9B and 32B", {"GlmForCausalLM": glm, "Glm4ForCausalLM": glm4})
