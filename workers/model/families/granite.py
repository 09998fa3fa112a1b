"""Granite: a Llama with multipliers of embeddings, attention, residuals and logits."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.family import Family, Raw


def config(raw: Raw) -> DecoderConfig:
    return decoder(
        raw,
        rms(raw),
        attention=dict(scale=float(raw.get("attention_multiplier", 1.0))),
        layer=dict(residual_scale=float(raw.get("residual_multiplier", 1.0))),
        embedding_scale=float(raw.get("embedding_multiplier", 1.0)),
        logit_scale=1.0 / raw.get("logits_scaling", 1.0),
    )


FAMILY = Family("Granite", "Granite 3 (dense)", {"GraniteForCausalLM": config})
