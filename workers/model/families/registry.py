"""Which family reads which architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families import llama, qwen

FAMILIES: dict[str, Callable[[dict[str, Any]], DecoderConfig]] = {
    "LlamaForCausalLM": llama.config,
    "Qwen2ForCausalLM": qwen.qwen2_config,
    "Qwen3ForCausalLM": qwen.qwen3_config,
}


class UnsupportedModel(ValueError):
    """No family serves this checkpoint; the message says why."""


def decoder_config(raw: dict[str, Any]) -> DecoderConfig:
    """The decoder of a checkpoint's config.json. Raises UnsupportedModel."""
    names = raw.get("architectures") or []
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if family is None:
        served = ", ".join(FAMILIES)
        raise UnsupportedModel(f"architecture {', '.join(names) or 'unnamed'} is not supported; supported: {served}")
    try:
        return family(raw)
    except KeyError as missing:
        raise UnsupportedModel(f"the model's config lacks {missing}") from None
