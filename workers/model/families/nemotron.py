"""Nemotron-4 and Minitron: layer norms of weight 1 + w, squared ReLU without a gate, half of each head rotated."""

from __future__ import annotations

from workers.model.config import DecoderConfig, NormConfig
from workers.model.families.common import activation, decoder, head_dim
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(gate_up=("mlp.up_proj",))


def config(raw: Raw) -> DecoderConfig:
    return decoder(
        raw,
        NormConfig(kind="layer", eps=raw.get("norm_eps", 1e-5), bias=True, offset=1.0),
        attention=dict(rope=rope(raw, head_dim(raw), partial=0.5)),
        mlp=dict(activation=activation(raw.get("hidden_act", "relu2")), gated=False),
        max_position=raw.get("max_position_embeddings", 4096),
        names=_NAMES,
    )


FAMILY = Family("Nemotron", "Nemotron-4, Minitron", {"NemotronForCausalLM": config})
