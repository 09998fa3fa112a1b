"""OLMo: norms without weights in 1; in 2 norms behind attention and MLP, and over all of q and k."""

from __future__ import annotations

from workers.model.config import DecoderConfig, NormConfig
from workers.model.families.common import Raw, decoder, rms
from workers.model.families.family import Family
from workers.model.names import WeightNames

_BEHIND = WeightNames(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")


def olmo(raw: Raw) -> DecoderConfig:
    norm = NormConfig(kind="layer", eps=1e-5, weight=False)
    return decoder(raw, norm, attention=dict(clip=raw.get("clip_qkv") or 0.0))


def olmo2(raw: Raw) -> DecoderConfig:
    norm = rms(raw, 1e-5)
    return decoder(
        raw,
        norm,
        attention=dict(qk_norm=norm, qk_norm_over="whole"),
        layer=dict(attention_norm=None, mlp_norm=None, attention_post_norm=norm, mlp_post_norm=norm),
        names=_BEHIND,
    )


FAMILY = Family("OLMo", "OLMo 1 and 2", {"OlmoForCausalLM": olmo, "Olmo2ForCausalLM": olmo2})
