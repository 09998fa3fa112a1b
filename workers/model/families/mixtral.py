"""Mixtral: Mistral with experts in all layers."""

from __future__ import annotations

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.experts import experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(
    router="block_sparse_moe.gate",
    expert_gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
    expert_down="block_sparse_moe.experts.{}.w2",
)


def config(raw: Raw) -> DecoderConfig:
    routing = RoutingOptions(raw.get("num_experts_per_tok", 2))
    return decoder(
        raw,
        rms(raw, 1e-5),
        attention=dict(window=raw.get("sliding_window") or 0),
        vary=mixed(experts(raw, raw["intermediate_size"], routing)),
        names=_NAMES,
    )


FAMILY = Family("Mixtral", "Mixtral 8x7B and 8x22B", {"MixtralForCausalLM": config})
