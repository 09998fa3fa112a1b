"""Qwen2-MoE (a shared expert with a gate of its own) and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Callable

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, rms, sliding
from workers.model.families.experts import both, experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_QWEN2 = WeightNames(
    shared_gate_up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    shared_down="mlp.shared_expert.down_proj",
)


def _has_experts(raw: Raw) -> Callable[[int], bool]:
    step, dense = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    return lambda index: index not in dense and (index + 1) % step == 0


def _routing(raw: Raw, top_k: int) -> RoutingOptions:
    return RoutingOptions(raw.get("num_experts_per_tok", top_k), normalised=raw.get("norm_topk_prob", False))


def _window(raw: Raw) -> int:
    return (raw.get("sliding_window", 4096) or 0) if raw.get("use_sliding_window") else 0


def qwen2(raw: Raw) -> DecoderConfig:
    first = raw.get("max_window_layers", 28)
    types = raw.get("layer_types") or [
        "sliding_attention" if index % 2 == 0 and index < first else "full_attention"
        for index in range(raw["num_hidden_layers"])
    ]
    shared = raw.get("shared_expert_intermediate_size", 5632)
    moe = experts(raw, raw.get("moe_intermediate_size", 1408), _routing(raw, 4), shared=shared, shared_gate=True)
    return decoder(
        raw,
        rms(raw),
        attention=dict(qkv_bias=raw.get("qkv_bias", True), output_bias=False),
        vary=both(sliding(types, _window(raw)), mixed(moe, _has_experts(raw))),
        names=_QWEN2,
    )


def qwen3(raw: Raw) -> DecoderConfig:
    moe = experts(raw, raw.get("moe_intermediate_size", 768), _routing(raw, 8))
    heads = dict(qk_norm=rms(raw), head_dim=head_dim(raw), window=_window(raw))
    return decoder(raw, rms(raw), attention=heads, vary=mixed(moe, _has_experts(raw)))


FAMILY = Family(
    "Qwen-MoE",
    "Qwen1.5-MoE, Qwen2-57B-A14B, Qwen3-30B-A3B, Qwen3-235B-A22B",
    {"Qwen2MoeForCausalLM": qwen2, "Qwen3MoeForCausalLM": qwen3},
)
