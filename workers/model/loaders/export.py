"""Writes a model out as a HuggingFace folder, so that other engines can read what a GGUF file holds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from workers.model.loaders.config import read_config, read_generation_defaults
from workers.model.loaders.gguf_file import open_gguf
from workers.model.loaders.tokenizer import load_tokenizer


def export_folder(source: Path, out: Path, dtype: torch.dtype) -> Path:
    """Write the GGUF file `source` as config.json, model.safetensors, generation_config.json and tokenizer files."""
    out.mkdir(parents=True, exist_ok=True)
    config = read_config(source)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=1))
    eos = read_generation_defaults(source).eos_token_ids
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    file = open_gguf(source)
    tensors = {name: file.tensor(name).to(dtype).contiguous() for name in file.names()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    load_tokenizer(source).save_pretrained(out)
    return out
