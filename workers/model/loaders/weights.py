"""Weights by their HuggingFace checkpoint names, from safetensors folders, GGUF files, or at random."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from workers.model.loaders.config import read_json
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.gguf_file import open_gguf
from workers.model.loaders.safetensors_file import ParallelReader, SafetensorsFile, Stored

_STORED = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""Other types are parts of a quantized weight, and mean nothing without its scales."""


class WeightSource(Protocol):
    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor of a checkpoint name. Raises ModelLoadError where it is missing or of another shape."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that checkpoint name."""
        ...


def open_weights(path: Path) -> WeightSource:
    """The weights of a model folder or GGUF file. Raises ModelLoadError."""
    return GGUFWeights(path) if path.is_file() else SafetensorsWeights(path)


def check_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ModelLoadError(f"{path}: tensor {name} has shape {list(tensor.shape)}, the config asks for {list(shape)}")
    return tensor


class GGUFWeights:
    def __init__(self, path: Path) -> None:
        self._file = open_gguf(path)

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        tensor = check_shape(self._file.path, name, self._file.tensor(name), shape)
        return tensor.to(device=device, dtype=dtype)

    def has(self, name: str) -> bool:
        return self._file.has(name)


class SafetensorsWeights:
    """A folder's model.safetensors, or the shards that model.safetensors.index.json names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, SafetensorsFile] = {}
        self._reader = ParallelReader()
        self._file_of = self._index()

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        file_name = self._file_of.get(name)
        if file_name is None:
            raise ModelLoadError(f"{self._folder}: tensor {name} is missing")
        path = self._folder / file_name
        try:
            file = self._shard(file_name)
            stored = file.tensors[name]
            check_stored(path, name, stored, shape, dtype)
            return self._reader.read(file, stored, device).to(dtype)
        except KeyError:
            raise ModelLoadError(f"{path}: tensor {name} cannot be read: it is not in this file") from None
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{path}: tensor {name} cannot be read: {error}") from error

    def has(self, name: str) -> bool:
        return name in self._file_of

    def check(self) -> None:
        """Open every shard. Raises ModelLoadError for one that is missing, cut or none."""
        for file_name in sorted(set(self._file_of.values())):
            try:
                self._shard(file_name)
            except (OSError, SafetensorError) as error:
                raise ModelLoadError(f"{self._folder / file_name} cannot be opened: {error}") from error

    def _index(self) -> dict[str, str]:
        index, single = self._folder / "model.safetensors.index.json", self._folder / "model.safetensors"
        if index.is_file():
            files = read_json(index).get("weight_map")
            if not isinstance(files, dict):
                raise ModelLoadError(f"{index} has no weight_map")
            return files
        if not single.is_file():
            raise ModelLoadError(f"{self._folder} has no model.safetensors and no model.safetensors.index.json")
        try:
            return dict.fromkeys(self._shard(single.name).tensors, single.name)
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{single} cannot be opened: {error}") from error

    def _shard(self, file_name: str) -> SafetensorsFile:
        if file_name not in self._open:
            self._open[file_name] = SafetensorsFile(self._folder / file_name)
        return self._open[file_name]


def check_stored(path: Path, name: str, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises ModelLoadError for a tensor of another shape, and for part of a quantized weight that was not asked for."""
    if stored.dtype not in _STORED and stored.dtype != dtype:
        kind = str(stored.dtype or stored.kind).removeprefix("torch.")
        raise ModelLoadError(f"{path}: tensor {name} is {kind}; quantized checkpoints are not supported")
    if stored.shape != shape:
        raise ModelLoadError(f"{path}: tensor {name} has shape {list(stored.shape)}, the config asks for {list(shape)}")


class DummyWeights:
    """Random weights of any shape, the same for the same seed and name: the weights of norms are ones, the rest is normal *
    0.02."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if "norm" in name or (len(shape) == 1 and name.endswith(".weight")):
            return torch.ones(shape, dtype=dtype, device=device)
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 0.02, generator=generator)

    def has(self, name: str) -> bool:
        return True
