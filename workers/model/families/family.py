"""What a family declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.model.config import DecoderConfig

Raw = dict[str, Any]
"""A checkpoint's config.json."""
ReadConfig = Callable[[Raw], DecoderConfig]
"""From a checkpoint's config.json. Raises ValueError for what the decoder cannot do, and KeyError for what is missing."""


@dataclass(frozen=True, slots=True)
class Family:
    """`architectures`: by the name in config.json, what reads it. `description`: models that it serves, for the docs."""

    name: str
    description: str
    architectures: Mapping[str, ReadConfig]
