"""Mistral: a Llama whose layers may all have a sliding window."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families import llama
from workers.model.families.common import Raw
from workers.model.families.family import Family


def config(raw: Raw) -> DecoderConfig:
    return llama.config(raw, attention=dict(window=raw.get("sliding_window", 4096) or 0))


FAMILY = Family("Mistral", "Mistral 7B, Nemo, Small", {"MistralForCausalLM": config})
