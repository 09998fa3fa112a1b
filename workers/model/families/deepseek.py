"""DeepSeek V2 and V3: attention by latents, experts in groups beside shared ones, dense layers first."""

from __future__ import annotations

import math

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig, LatentAttentionConfig, MoEConfig, NormConfig
from workers.model.families.common import decoder, rms
from workers.model.families.experts import behind, experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope, rope_settings

_DEFAULTS: Raw = dict(
    kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_shared_experts=None
)


def _attention(raw: Raw, interleaved: bool) -> LatentAttentionConfig:
    plain, rotated, settings = raw["qk_nope_head_dim"], raw["qk_rope_head_dim"], rope_settings(raw)
    if raw["v_head_dim"] > plain + rotated:
        raise ValueError(f"values wider than keys are not supported: v_head_dim {raw['v_head_dim']}")
    scale = (plain + rotated) ** -0.5
    stretch, whole = settings.get("factor") or 1.0, settings.get("mscale_all_dim") or 0.0
    if settings.get("rope_type", settings.get("type", "default")) != "default" and stretch > 1:
        scale *= (0.1 * whole * math.log(stretch) + 1.0) ** 2
    return LatentAttentionConfig(
        num_heads=raw["num_attention_heads"],
        plain_dim=plain,
        rope_dim=rotated,
        value_dim=raw["v_head_dim"],
        query_rank=raw["q_lora_rank"] or 0,
        kv_rank=raw["kv_lora_rank"],
        scale=scale,
        rope=rope(raw, rotated, interleaved=interleaved),
        norm=NormConfig(eps=1e-6),
        bias=raw.get("attention_bias", False),
    )


def _experts(raw: Raw, routing: RoutingOptions, *, correction: bool) -> MoEConfig:
    size = raw["moe_intermediate_size"]
    shared = size * (raw["n_shared_experts"] or 0)
    return experts(raw, size, routing, shared=shared, correction=correction, wide_router=True)


def _config(raw: Raw, moe: MoEConfig, interleaved: bool) -> DecoderConfig:
    first = raw.get("first_k_dense_replace") or 0
    latent = _attention(raw, interleaved)
    raw = {**raw, "head_dim": latent.head_dim}
    return decoder(raw, rms(raw), layer=dict(attention=latent), vary=mixed(moe, behind(first)))


def v2(raw: Raw) -> DecoderConfig:
    raw = {**_DEFAULTS, "max_position_embeddings": 2048, **raw}
    grouped = raw.get("topk_method") == "group_limited_greedy"
    routing = RoutingOptions(
        raw["num_experts_per_tok"],
        normalised=False,
        scale=raw.get("routed_scaling_factor", 1.0),
        groups=raw["n_group"] if grouped else 1,
        top_groups=raw["topk_group"] if grouped else 1,
    )
    return _config(raw, _experts(raw, routing, correction=False), True)


def v3(raw: Raw) -> DecoderConfig:
    raw = {**_DEFAULTS, "max_position_embeddings": 4096, **raw}
    routing = RoutingOptions(
        raw.get("num_experts_per_tok", 8),
        "sigmoid",
        normalised=raw.get("norm_topk_prob", True),
        scale=raw.get("routed_scaling_factor", 2.5),
        groups=raw.get("n_group") or 1,
        top_groups=raw.get("topk_group") or 1,
    )
    return _config(raw, _experts(raw, routing, correction=True), raw.get("rope_interleave", True))


FAMILY = Family(
    "DeepSeek",
    "DeepSeek V2, V2-Lite, V3, R1, Moonlight, Kimi K2",
    {"DeepseekV2ForCausalLM": v2, "DeepseekV3ForCausalLM": v3},
)
