"""Safetensors files, read by several threads at once: each takes a part of a tensor's bytes to where the tensor is made.

One thread copies 1 to 3 GB/s out of the page cache, and a GPU takes ten times that. For a GPU the threads read into pinned
buffers of PART_BYTES each, so what the host holds beyond the page cache is a few of those.
Format: https://huggingface.co/docs/safetensors: a length of 8 bytes, a JSON header with the place of each tensor, the bytes.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

PART_BYTES = 8 << 20
_MOST_THREADS = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CutOff(OSError):
    """The file ends before the tensor does."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's place: bytes [begin, end) of the file. dtype: None for one that is not known here, by `kind`."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype | None:
        return _DTYPES.get(self.kind)


class SafetensorsFile:
    """Raises OSError or SafetensorError where the file is not there, is cut, or is none."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt"):  # checks the header, and that the file is as long as it says
            pass
        self.descriptor = os.open(path, os.O_RDONLY)
        length = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
        header = json.loads(os.pread(self.descriptor, length, 8))
        self.tensors = {name: _stored(8 + length, entry) for name, entry in header.items() if name != "__metadata__"}

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _stored(start: int, entry: dict[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    return Stored(entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


class ParallelReader:
    """Threads that read tensors, each with a pinned buffer of its own where they read for a GPU."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "weights")
        self._buffers = threading.local()

    def read(self, file: SafetensorsFile, stored: Stored, device: torch.device) -> Tensor:
        """The tensor as it is stored, on `device`. Raises OSError."""
        assert stored.dtype is not None
        out = torch.empty(stored.shape, dtype=stored.dtype, device=device)
        raw = out.view(-1).view(torch.uint8)
        parts = [(at, min(PART_BYTES, len(raw) - at)) for at in range(0, len(raw), PART_BYTES)]
        done = [
            self._pool.submit(self._read_part, file.descriptor, stored.begin + at, raw[at : at + size])
            for at, size in parts
        ]
        for part in done:
            part.result()
        return out

    def _read_part(self, descriptor: int, begin: int, target: Tensor) -> None:
        if not target.is_cuda:
            return _read_into(descriptor, begin, target)
        if not hasattr(self._buffers, "pinned"):
            self._buffers.pinned = torch.empty(PART_BYTES, dtype=torch.uint8, pin_memory=True)
        staged = self._buffers.pinned[: len(target)]
        _read_into(descriptor, begin, staged)
        target.copy_(staged)  # on the stream that everything runs on: it waits for what had this memory before
        return None


def _read_into(descriptor: int, begin: int, target: Tensor) -> None:
    """A read may bring less than was asked for."""
    memory = memoryview(target.numpy().data)
    while memory:
        count = os.preadv(descriptor, [memory], begin)
        if count == 0:
            raise CutOff(f"the file ends at byte {begin}")
        memory, begin = memory[count:], begin + count
