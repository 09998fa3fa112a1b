"""StarCoder2: biases everywhere, layer norms, plain MLP, a sliding window in all layers."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families.common import activation, decoder, layer_norm
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames

_NAMES = WeightNames(gate_up=("mlp.c_fc",), down="mlp.c_proj")


def config(raw: Raw) -> DecoderConfig:
    raw = {"tie_word_embeddings": True, "max_position_embeddings": 4096, **raw}
    bias = raw.get("use_bias", True)
    return decoder(
        raw,
        layer_norm(raw, "norm_epsilon"),
        attention=dict(window=raw.get("sliding_window") or 0, qkv_bias=bias, output_bias=bias),
        mlp=dict(activation=activation(raw.get("hidden_act", "gelu_pytorch_tanh")), gated=False, bias=bias),
        names=_NAMES,
    )


FAMILY = Family("StarCoder2", "StarCoder2 3B, 7B, 15B", {"Starcoder2ForCausalLM": config})
