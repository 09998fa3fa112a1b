"""Small GGUF files, written by the gguf package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

Fill = Callable[[gguf.GGUFWriter], object]


def write_file(path: Path, fill: Fill, architecture: str = "llama", **tensors: np.ndarray) -> Path:
    """A file with the metadata that `fill` adds, and with `tensors` (__ stands for a dot, .weight is added)."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    for name, values in (tensors or {"token_embd": np.zeros((4, 32), np.float32)}).items():
        writer.add_tensor(f"{name.replace('__', '.')}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_sizes(writer: gguf.GGUFWriter) -> None:
    """The metadata of a llama with heads of 64 values."""
    writer.add_block_count(1)
    writer.add_context_length(131072)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(4)
