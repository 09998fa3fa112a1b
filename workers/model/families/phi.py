"""Phi-1, Phi-1.5 and Phi-2: parallel with one norm, biases everywhere, a part of each head rotated."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import activation, decoder, head_dim, layer_norm
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames

_NAMES = WeightNames(
    attention_output="self_attn.dense",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    gate_up=("mlp.fc1",),
    down="mlp.fc2",
    final_norm="final_layernorm",
)


def config(raw: Raw) -> DecoderConfig:
    norm = layer_norm(raw)
    return decoder(
        raw,
        norm,
        attention=dict(
            rope=rope(raw, head_dim(raw), partial=0.5),
            qkv_bias=True,
            output_bias=True,
            qk_norm=norm if raw.get("qk_layernorm") else None,
        ),
        mlp=dict(activation=activation(raw.get("hidden_act", "gelu_new")), gated=False, bias=True),
        layer=dict(wiring="parallel", mlp_norm=None),
        head_bias=True,
        names=_NAMES,
    )


FAMILY = Family("Phi", "Phi-1, Phi-1.5, Phi-2", {"PhiForCausalLM": config})
