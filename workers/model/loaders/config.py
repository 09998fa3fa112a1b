"""The model's configuration, in the words of HuggingFace's config.json, from a folder or a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.gguf_file import ARCHITECTURES, GGUFFile, open_gguf

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What ends an output, and the sampling that the model's makers suggest."""

    eos_token_ids: list[int]
    sampling: dict[str, float] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
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
    return GenerationDefaults(eos, {name: raw[name] for name in _SAMPLING if raw.get(name) is not None})


def _gguf_config(file: GGUFFile) -> dict[str, Any]:
    architecture = file.architecture
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
    scaling = file.get(f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        factor = file.setting("rope.scaling.factor", 1.0)
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    return config
