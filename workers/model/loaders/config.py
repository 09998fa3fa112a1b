"""The model's configuration, in the words of HuggingFace's config.json, from a folder or a GGUF file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.gguf_file import ARCHITECTURES, GGUFFile, open_gguf

_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1, 3.2 and 3.3 share; their `factor` differs."""
_SAMPLING = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} | {
    "max_new_tokens": "max_tokens"
}
"""Names in generation_config.json, and in a request."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What ends an output, and the sampling that the model's makers suggest."""

    eos_token_ids: list[int]
    sampling: dict[str, float] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """config.json, or what a GGUF file's metadata says in its words. Raises ModelLoadError."""
    return _gguf_config(open_gguf(path)) if path.is_file() else read_json(path / "config.json")


def read_generation_defaults(path: Path) -> GenerationDefaults:
    """From generation_config.json, else config.json, or from a GGUF file's tokenizer."""
    if path.is_file():
        file = open_gguf(path)
        ids = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return GenerationDefaults(sorted({int(token) for token in ids if token is not None}))
    given = path / "generation_config.json"
    raw = read_json(given) if given.is_file() else {}
    eos: int | list[int] | None = raw.get("eos_token_id")
    if eos is None:
        eos = read_config(path).get("eos_token_id")
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return GenerationDefaults(eos, {ours: raw[name] for name, ours in _SAMPLING.items() if raw.get(name) is not None})


def _gguf_config(file: GGUFFile) -> dict[str, Any]:
    architecture = file.architecture
    if file.setting("expert_count", 0):
        raise ModelLoadError(f"{file.path}: mixtures of experts are not supported")
    heads, hidden = file.setting("attention.head_count"), file.setting("embedding_length")
    vocab = file.get(f"{architecture}.vocab_size") or len(file.get("tokenizer.ggml.tokens", []))
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": file.setting("feed_forward_length"),
        "num_hidden_layers": file.setting("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.setting("attention.head_count_kv", heads),
        "head_dim": file.setting("attention.key_length", hidden // heads),
        "vocab_size": vocab,
        "max_position_embeddings": file.setting("context_length"),
        "rms_norm_eps": file.setting("attention.layer_norm_rms_epsilon"),
        "rope_theta": file.setting("rope.freq_base", 10000.0),
        "tie_word_embeddings": not file.has("lm_head.weight"),
        "hidden_act": "silu",
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
    }
    if architecture == "llama":
        config["attention_bias"] = file.has("model.layers.0.self_attn.q_proj.bias")
        config["mlp_bias"] = file.has("model.layers.0.mlp.up_proj.bias")
    scaling = _rope_scaling(file, config["rope_theta"], config["head_dim"])
    return config if scaling is None else {**config, "rope_scaling": scaling}


def _rope_scaling(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """A file names linear scaling and its like; of Llama 3's it holds only what each frequency is divided by."""
    kind = file.get(f"{file.architecture}.rope.scaling.type")
    if kind not in (None, "none"):
        return {"rope_type": kind, "factor": file.setting("rope.scaling.factor", 1.0)}
    factors = file.rope_factors()
    if factors is None or bool((factors == 1).all()):
        return None
    factor = round(float(factors.max()), 3)
    expected = _llama3_factors(factor, theta, head_dim)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise ModelLoadError(f"{file.path}: tensor rope_freqs.weight holds other factors than those of Llama 3")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}


def _llama3_factors(factor: float, theta: float, head_dim: int) -> torch.Tensor:
    """[head_dim / 2]: 1 for short wavelengths, `factor` for long ones, and a smooth way between them."""
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    wavelengths = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = _LLAMA3_ROPE["original_max_position_embeddings"] / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 / (smooth + (1 - smooth) / factor)).float()
