"""gpt-oss: attention sinks, a window in every other layer, experts with biases and a clamped gate, in bf16 or mxfp4."""

from __future__ import annotations

from kernels.moe_routing import RoutingOptions
from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, layer_types, rms, sliding
from workers.model.families.experts import both, experts, mixed
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(router="mlp.router", experts_layout="interleaved")


def config(raw: Raw) -> DecoderConfig:
    raw = {"head_dim": 64, "attention_bias": True, "rope_theta": 150000.0, "max_position_embeddings": 131072, **raw}
    method = (raw.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "mxfp4"):
        raise ValueError(f"weights quantized by {method} are not supported; supported: mxfp4")
    moe = experts(
        raw,
        raw["intermediate_size"],
        RoutingOptions(raw.get("num_experts_per_tok", 4)),
        router_bias=True,
        bias=True,
        alpha=raw.get("swiglu_alpha", 1.702),
        limit=raw.get("swiglu_limit", 7.0),
    )
    vary = both(sliding(layer_types(raw, 2), raw.get("sliding_window", 128)), mixed(moe))
    return decoder(raw, rms(raw, 1e-5), attention=dict(sinks=True), vary=vary, names=_NAMES)


FAMILY = Family(
    "gpt-oss", "gpt-oss 20B and 120B, their experts dequantized while they are read", {"GptOssForCausalLM": config}
)
