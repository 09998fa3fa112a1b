"""Qwen2 and Qwen2.5 (biases on q, k and v), Qwen3 (norms on q and k)."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families import llama


def _reject_sliding_window(raw: dict[str, Any]) -> None:
    if raw.get("use_sliding_window"):
        raise ValueError("use_sliding_window is not supported")


def qwen2_config(raw: dict[str, Any]) -> DecoderConfig:
    _reject_sliding_window(raw)
    return llama.config(raw, qkv_bias=True, output_bias=False)


def qwen3_config(raw: dict[str, Any]) -> DecoderConfig:
    _reject_sliding_window(raw)
    return llama.config(raw, qk_norm=True)
