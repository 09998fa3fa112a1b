"""Qwen2 and Qwen2.5 (biases on q, k and v), Qwen3 (norms on q and k)."""

from __future__ import annotations

from collections.abc import Sequence

from workers.model.config import DecoderConfig
from workers.model.families import llama
from workers.model.families.common import head_dim, rms, sliding
from workers.model.families.family import Family, Raw


def _types(raw: Raw) -> Sequence[str]:
    given: Sequence[str] | None = raw.get("layer_types")
    if given is not None:
        return given
    first = raw.get("max_window_layers", 28)
    return ["full_attention" if i < first else "sliding_attention" for i in range(raw["num_hidden_layers"])]


def _window(raw: Raw) -> int | None:
    return raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None


def qwen2_config(raw: Raw) -> DecoderConfig:
    biases = dict(qkv_bias=True, output_bias=False)
    return llama.config(raw, attention=biases, vary=sliding(_types(raw), _window(raw)))


def qwen3_config(raw: Raw) -> DecoderConfig:
    heads = dict(qk_norm=rms(raw), head_dim=head_dim({"head_dim": 128, **raw}))
    return llama.config(raw, attention=heads, vary=sliding(_types(raw), _window(raw)))


FAMILY = Family(
    "Qwen",
    "Qwen2, Qwen2.5, QwQ, Qwen3 (dense)",
    {"Qwen2ForCausalLM": qwen2_config, "Qwen3ForCausalLM": qwen3_config},
)
