"""OLMo: norms without weights in 1; in 2 norms behind attention and MLP, and over all of q and k; in 3 sliding windows."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig, NormConfig
from workers.model.families.common import decoder, head_dim, layer_types, rms, sliding
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import ropes_by_type
from workers.model.names import WeightNames

_BEHIND = WeightNames(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")


def olmo(raw: Raw) -> DecoderConfig:
    norm = NormConfig(kind="layer", eps=1e-5, weight=False)
    return decoder(raw, norm, attention=dict(clip=raw.get("clip_qkv") or 0.0))


def olmo2(raw: Raw, **changes: Any) -> DecoderConfig:
    norm = rms(raw, 1e-5)
    attention = dict(qk_norm=norm, qk_norm_over="whole", **changes.pop("attention", {}))
    layer = dict(attention_norm=None, mlp_norm=None, attention_post_norm=norm, mlp_post_norm=norm)
    return decoder(raw, norm, attention=attention, layer=layer, names=_BEHIND, **changes)


def olmo3(raw: Raw) -> DecoderConfig:
    theta = raw.get("rope_theta") or 500000.0
    everywhere, local = ropes_by_type(raw, head_dim(raw), theta=theta, local_theta=theta)
    vary = sliding(layer_types(raw, 4), raw.get("sliding_window", 4096), rope=local)
    return olmo2(raw, attention=dict(rope=everywhere), vary=vary)


FAMILY = Family(
    "OLMo",
    "OLMo 1, 2 and 3",
    {"OlmoForCausalLM": olmo, "Olmo2ForCausalLM": olmo2, "Olmo3ForCausalLM": olmo3},
)
