"""Command-R and Command-R7B: parallel, norms without bias, neighbours rotated. From Command-R7B on, layers that slide rotate
and those that see everything do not."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, layer_norm, layer_types, sliding
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope

_DEFAULTS: Raw = dict(max_position_embeddings=8192, tie_word_embeddings=True, logit_scale=0.0625)


def _config(raw: Raw, attention: Raw, **changes: Any) -> DecoderConfig:
    return decoder(
        raw,
        layer_norm(raw, bias=False),
        attention=attention,
        layer=dict(wiring="parallel", mlp_norm=None),
        logit_scale=raw["logit_scale"] if raw["logit_scale"] is not None else 1.0,
        **changes,
    )


def cohere(raw: Raw) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw}
    attention: Raw = dict(rope=rope(raw, head_dim(raw), theta=500000.0, interleaved=True))
    if raw.get("use_qk_norm"):
        attention |= dict(qk_norm=layer_norm(raw, bias=False), qk_norm_over="heads")
    return _config(raw, attention)


def cohere2(raw: Raw) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw}
    types, window = layer_types(raw, raw.get("sliding_window_pattern", 4)), raw.get("sliding_window", 4096)
    local = rope(raw, head_dim(raw), interleaved=True) if window is not None else None
    return _config(raw, dict(rope=None), vary=sliding(types, window, rope=local))


FAMILY = Family(
    "Cohere",
    "Command-R, Command-R+, Aya (Cohere), Command-R7B, Command-A (Cohere2)",
    {"CohereForCausalLM": cohere, "Cohere2ForCausalLM": cohere2},
)
