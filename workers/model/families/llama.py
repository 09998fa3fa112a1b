"""Llama, and what follows its structure."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families.common import decoder, rms
from workers.model.families.family import Family, Raw


def config(raw: Raw, **changes: Any) -> DecoderConfig:
    return decoder(raw, rms(raw), **changes)


FAMILY = Family(
    "Llama",
    "Llama 1 to 3.3, and what has its structure: SmolLM2, TinyLlama, Falcon 3, Yi, Vicuna",
    {"LlamaForCausalLM": config},
)
