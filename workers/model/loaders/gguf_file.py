"""GGUF files: metadata, and tensors under the names and in the row order of HuggingFace checkpoints.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Llama files keep q and k rows permuted for rotation in
adjacent pairs; here they come back in the rotate-half order.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from workers.model.loaders.errors import ModelLoadError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TYPES = frozenset({"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16", "BF16", "F32"})
_GLOBAL_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight. Raises KeyError for a name that GGUF has no word for."""
    stem, _, kind = name.rpartition(".")
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"


class _CutOff(Exception):
    """The file ends before what starts at `offset` does."""

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(f"it is cut off: {size} bytes are there, and more are needed from byte {offset}")
        self.offset = offset


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """Reads through a plain array: each slice of a memmap costs four times as much, and a vocabulary has 740,000.

    The package takes what is left where a file ends early; here that raises _CutOff, which names the tensor.
    """

    data: Any

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        try:
            found = super()._get(offset, dtype, count, override_order)
        except ValueError:  # the rest of the file is no whole number of items
            raise _CutOff(offset, len(self.data)) from None
        if len(found) < count:
            raise _CutOff(offset, len(self.data))
        return found

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        try:
            super()._build_tensors(start_offs, fields)
        except _CutOff as error:
            names = {start_offs + int(field.parts[5][0]): bytes(field.parts[1]).decode() for field in fields}
            raise ValueError(f"tensor {names[error.offset]}: {error}") from error


@lru_cache(maxsize=1)
def _open(path: Path, _size: int, _changed: int) -> GGUFFile:
    return GGUFFile(path)


def open_gguf(path: Path) -> GGUFFile:
    """The file, parsed once for all who read it one after the other: parsing takes a second. Raises ModelLoadError."""
    try:
        state = path.stat()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    return _open(path, state.st_size, state.st_mtime_ns)


class GGUFFile:
    """A memory-mapped GGUF file. Raises ModelLoadError where it is corrupt or truncated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = _Reader(path)
        except Exception as error:  # the parser raises whatever the broken bytes lead it to
            raise ModelLoadError(f"{path} is not a readable GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        parts = self.get("split.count", 1)
        if parts > 1:
            raise ModelLoadError(f"{path} is one of {parts} parts of a model; join them (llama-gguf-split --merge)")

    def get(self, key: str, default: Any = None) -> Any:
        """One metadata value, as Python knows it."""
        found = self._reader.get_field(key)
        try:
            return default if found is None else found.contents()
        except ValueError as error:
            raise ModelLoadError(f"{self.path}: metadata {key} cannot be read: {error}") from error

    @property
    def architecture(self) -> str:
        name = str(self.get("general.architecture", "unnamed"))
        if name not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise ModelLoadError(f"{self.path}: architecture {name} is not supported; supported: {supported}")
        return name

    def setting(self, key: str, default: Any = None) -> Any:
        """A metadata value of the model's architecture, such as block_count."""
        value = self.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ModelLoadError(f"{self.path}: metadata {self.architecture}.{key} is missing")
        return value

    def names(self) -> list[str]:
        """HuggingFace names of the file's tensors; those without one are left out (see `rope_factors`)."""
        known = {value: key for key, value in {**_GLOBAL_NAMES, **_LAYER_NAMES}.items()}
        names = []
        for stored in self._tensors:
            stem, _, kind = stored.rpartition(".")
            layer = stem.removeprefix("blk.").split(".")[0] if stem.startswith("blk.") else None
            part = known.get(stem if layer is None else stem.removeprefix(f"blk.{layer}."))
            if part is not None:
                names.append(f"{part}.{kind}" if layer is None else f"model.layers.{layer}.{part}.{kind}")
        return names

    def shapes(self) -> list[tuple[int, ...]]:
        """Of all tensors."""
        return [tuple(int(size) for size in tensor.shape) for tensor in self._tensors.values()]

    def has(self, name: str) -> bool:
        """Whether there is a tensor for this HuggingFace name."""
        try:
            return gguf_name(name) in self._tensors
        except KeyError:
            return False

    def tensor(self, name: str) -> Tensor:
        """The tensor of a HuggingFace name, dequantized to fp32. Raises ModelLoadError."""
        try:
            stored = self._tensors.get(gguf_name(name))
        except KeyError:
            raise ModelLoadError(f"{self.path}: tensor {name} is missing; GGUF has no name for it") from None
        if stored is None:
            raise ModelLoadError(f"{self.path}: tensor {gguf_name(name)} ({name}) is missing")
        return self._unpermute(name, self._values(stored))

    def rope_factors(self) -> Tensor | None:
        """[head_dim / 2] by which each rotation frequency is divided, where the file gives it (Llama 3.1 and later)."""
        stored = self._tensors.get("rope_freqs.weight")
        return None if stored is None else self._values(stored)

    def _values(self, stored: Any) -> Tensor:
        if stored.tensor_type.name not in _TYPES:
            supported = ", ".join(sorted(_TYPES))
            raise ModelLoadError(
                f"{self.path}: tensor {stored.name} is {stored.tensor_type.name}, which is not supported; "
                f"supported: {supported}"
            )
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        tensor = torch.from_numpy(np.array(values, dtype=np.float32, copy=True))
        return tensor.reshape([int(size) for size in reversed(stored.shape)])

    def _unpermute(self, name: str, tensor: Tensor) -> Tensor:
        is_query, is_key = ".q_proj." in name, ".k_proj." in name
        if self.architecture != "llama" or not (is_query or is_key):
            return tensor
        heads = self.setting("attention.head_count")
        if is_key:
            heads = self.setting("attention.head_count_kv", heads)
        pairs = tensor.view(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
