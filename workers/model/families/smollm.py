"""SmolLM3: a Llama of which every fourth layer rotates nothing."""

from __future__ import annotations

from workers.model.config import DecoderConfig, LayerConfig
from workers.model.families import llama
from workers.model.families.common import head_dim, with_attention
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope


def config(raw: Raw) -> DecoderConfig:
    raw = {"tie_word_embeddings": True, "max_position_embeddings": 32768, "num_key_value_heads": 4, **raw}
    every = raw.get("no_rope_layer_interval", 4)
    rotates = raw.get("no_rope_layers") or [(i + 1) % every for i in range(raw["num_hidden_layers"])]
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    turns = rope(raw, head_dim(raw), theta=2e6)

    def vary(index: int, layer: LayerConfig) -> LayerConfig:
        slides = window is not None and (
            raw["layer_types"][index] == "sliding_attention" if raw.get("layer_types") else not rotates[index]
        )
        return with_attention(layer, rope=turns if rotates[index] else None, window=window if slides else 0)

    return llama.config(raw, attention=dict(rope=turns), vary=vary)


FAMILY = Family("SmolLM3", "SmolLM3 3B", {"SmolLM3ForCausalLM": config})
