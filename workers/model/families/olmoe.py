"""OLMoE: experts in all layers, norms over all of q and k."""

from __future__ import annotations

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.experts import experts, mixed
from workers.model.families.family import Family, Raw


def config(raw: Raw) -> DecoderConfig:
    if raw.get("clip_qkv"):
        raise ValueError("clip_qkv is not supported")  # it bounds q and k behind their norms
    routing = RoutingOptions(raw.get("num_experts_per_tok", 8), normalised=raw.get("norm_topk_prob", False))
    norm = rms(raw, 1e-5)
    return decoder(
        raw,
        norm,
        attention=dict(qk_norm=norm, qk_norm_over="whole"),
        vary=mixed(experts(raw, raw["intermediate_size"], routing)),
    )


FAMILY = Family("OLMoE", "OLMoE 1B-7B", {"OlmoeForCausalLM": config})
