"""GLM-4.5 and dots.llm1: routing as DeepSeek V3 has it, in an otherwise plain decoder."""

from __future__ import annotations

from typing import Any

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, layer_types, rms, sliding
from workers.model.families.experts import behind, both, experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope


def _config(raw: Raw, attention: dict[str, Any]) -> DecoderConfig:
    routing = RoutingOptions(
        raw["num_experts_per_tok"],
        "sigmoid",
        normalised=raw.get("norm_topk_prob", True),
        scale=raw.get("routed_scaling_factor", 1.0),
        groups=raw.get("n_group") or 1,
        top_groups=raw.get("topk_group") or 1,
    )
    size = raw["moe_intermediate_size"]
    shared = size * (raw.get("n_shared_experts") or 0)
    moe = experts(raw, size, routing, shared=shared, correction=True, wide_router=True)
    types = layer_types({"layer_types": ["full_attention"] * raw["num_hidden_layers"], **raw}, 1)
    vary = both(sliding(types, raw.get("sliding_window")), mixed(moe, behind(raw.get("first_k_dense_replace", 0))))
    return decoder(raw, rms(raw, 1e-5), attention=attention, vary=vary)


def glm4(raw: Raw) -> DecoderConfig:
    dim = head_dim({"head_dim": 128, **raw})
    bias = raw.get("attention_bias", False)
    return _config(
        raw,
        dict(
            head_dim=dim,
            rope=rope(raw, dim, partial=0.5),
            qk_norm=rms(raw, 1e-5) if raw.get("use_qk_norm") else None,
            qkv_bias=bias,
            output_bias=False,
        ),
    )


def dots1(raw: Raw) -> DecoderConfig:
    return _config(raw, dict(qk_norm=rms(raw, 1e-5)))


FAMILY = Family("GLM-MoE", "GLM-4.5, GLM-4.6, dots.llm1", {"Glm4MoeForCausalLM": glm4, "Dots1ForCausalLM": dots1})
