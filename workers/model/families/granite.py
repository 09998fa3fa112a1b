"""Granite: a Llama with multipliers of embeddings, attention, residuals and logits; with experts, too."""

from __future__ import annotations

from typing import Any

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.experts import experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_EXPERTS = WeightNames(
    router="block_sparse_moe.router.layer",
    experts_layout="stacked",
    experts_gate_up="block_sparse_moe.input_linear.weight",
    experts_down="block_sparse_moe.output_linear.weight",
)


def config(raw: Raw, **changes: Any) -> DecoderConfig:
    return decoder(
        raw,
        rms(raw),
        attention=dict(scale=float(raw.get("attention_multiplier", 1.0))),
        layer=dict(residual_scale=float(raw.get("residual_multiplier", 1.0))),
        embedding_scale=float(raw.get("embedding_multiplier", 1.0)),
        logit_scale=1.0 / raw.get("logits_scaling", 1.0),
        **changes,
    )


def with_experts(raw: Raw) -> DecoderConfig:
    moe = experts(raw, raw["intermediate_size"], RoutingOptions(raw.get("num_experts_per_tok", 2)))
    return config(raw, vary=mixed(moe), names=_EXPERTS)


FAMILY = Family(
    "Granite",
    "Granite 3, dense and with experts",
    {"GraniteForCausalLM": config, "GraniteMoeForCausalLM": with_experts},
)
