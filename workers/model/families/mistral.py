"""Mistral: a Llama whose layers may all have a sliding window."""

from __future__ import annotations

from dataclasses import replace

from workers.model.config import DecoderConfig
from workers.model.families import llama
from workers.model.families.common import sliding
from workers.model.families.family import Family, Raw
from workers.model.names import WeightNames


def config(raw: Raw) -> DecoderConfig:
    return llama.config(raw, attention=dict(window=raw.get("sliding_window", 4096) or 0))


def ministral(raw: Raw) -> DecoderConfig:
    types = raw.get("layer_types") or ["sliding_attention"] * raw["num_hidden_layers"]
    return llama.config(raw, vary=sliding(types, raw.get("sliding_window", 4096)))


def inside(raw: Raw) -> DecoderConfig:
    """Of a model that also sees images. Whether embeddings are tied is said outside, if at all."""
    text = {**raw["text_config"], **{key: raw[key] for key in ("tie_word_embeddings",) if key in raw}}
    if text.get("model_type", "mistral") != "mistral":
        raise ValueError(f"text_config of type {text['model_type']!r} is not supported; supported: mistral")
    names = WeightNames(
        prefixes=("model.language_model.", "language_model.model.", "model.", ""),
        heads=("lm_head", "language_model.lm_head"),
    )
    return replace(config(text), names=names)


FAMILY = Family(
    "Mistral",
    "Mistral 7B, Nemo, Small, Ministral",
    {"MistralForCausalLM": config, "MinistralForCausalLM": ministral, "Mistral3ForConditionalGeneration": inside},
)
