"""StableLM: layer norms, a quarter of each head rotated, parallel in the larger ones."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, layer_norm
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope


def config(raw: Raw) -> DecoderConfig:
    if raw.get("qk_layernorm"):
        raise ValueError("qk_layernorm is not supported")
    norm, parallel = layer_norm(raw), raw.get("use_parallel_residual", False)
    bias = raw.get("use_qkv_bias", False)
    attention = dict(rope=rope(raw, head_dim(raw), partial=0.25), qkv_bias=bias, output_bias=False)
    layer = dict(wiring="parallel", mlp_norm=None) if parallel else {}
    return decoder(raw, norm, attention=attention, layer=layer)


FAMILY = Family("StableLM", "StableLM 3B, StableLM 2 1.6B", {"StableLmForCausalLM": config})
