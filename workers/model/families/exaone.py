"""EXAONE 4: norms behind attention and MLP and on each head; where layers slide, the others rotate nothing."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, head_dim, layer_types, rms, sliding
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_BEHIND = WeightNames(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")


def config(raw: Raw) -> DecoderConfig:
    norm, window, turns = rms(raw, 1e-5), raw.get("sliding_window", 4096), rope(raw, head_dim(raw))
    types = layer_types(raw, 4) if window is not None else ["full_attention"] * raw["num_hidden_layers"]
    return decoder(
        raw,
        norm,
        attention=dict(qk_norm=norm, rope=turns if window is None else None),
        layer=dict(attention_norm=None, mlp_norm=None, attention_post_norm=norm, mlp_post_norm=norm),
        vary=sliding(types, window, rope=turns),
        names=_BEHIND,
    )


FAMILY = Family("EXAONE", "EXAONE 4.0", {"Exaone4ForCausalLM": config})
