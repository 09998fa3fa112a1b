"""Llama 1 to 3.2, and what follows its structure (SmolLM2, TinyLlama, ...)."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig, RopeConfig


def rope(raw: dict[str, Any]) -> RopeConfig:
    """Rope settings from either spelling: rope_theta + rope_scaling, or rope_parameters."""
    settings = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope type {kind!r} is not supported; supported: default, linear, llama3")
    return RopeConfig(
        theta=float(settings.get("rope_theta", raw.get("rope_theta", 10000.0))),
        kind=kind,
        factor=float(settings.get("factor", 1.0)),
        low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
        high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
        original_max_position=int(settings.get("original_max_position_embeddings", 8192)),
    )


def config(raw: dict[str, Any], **changes: Any) -> DecoderConfig:
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported; supported: silu")
    heads = raw["num_attention_heads"]
    fields: dict[str, Any] = dict(
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        vocab_size=raw["vocab_size"],
        max_position=raw.get("max_position_embeddings", 2048),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=rope(raw),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        qkv_bias=raw.get("attention_bias", False),
        output_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
    )
    return DecoderConfig(**{**fields, **changes})
