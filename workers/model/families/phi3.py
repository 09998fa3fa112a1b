"""Phi-3 and Phi-4: a Llama saved with fused projections; longrope in the long-context versions."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))


def config(raw: Raw) -> DecoderConfig:
    raw = {"max_position_embeddings": 4096, **raw}
    return decoder(raw, rms(raw, 1e-5), attention=dict(window=raw.get("sliding_window") or 0), names=_NAMES)


FAMILY = Family("Phi-3", "Phi-3, Phi-3.5, Phi-4, Phi-4-mini", {"Phi3ForCausalLM": config})
