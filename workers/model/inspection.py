"""What can be said of a model without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from workers.model.families.registry import FAMILIES, UnsupportedModel, decoder_config
from workers.model.interface import ModelSizes
from workers.model.loaders.config import read_config
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.gguf_file import open_gguf


@dataclass(frozen=True, slots=True)
class Inspection:
    """by: what runs it, or an empty string, with the reason. parameters: None where nobody can count them."""

    path: Path
    architecture: str
    by: str
    reason: str
    parameters: int | None
    sizes: ModelSizes | None


def inspect(path: Path, *, trust_remote_code: bool = False) -> Inspection:
    """Raises ModelLoadError where its config cannot be read."""
    raw = read_config(path)
    named = ", ".join(raw.get("architectures") or []) or "unnamed"
    try:
        sizes = decoder_config(raw)
    except UnsupportedModel as error:
        return _by_transformers(path, named, error, trust_remote_code)
    family = next(family.name for family in FAMILIES if set(raw["architectures"]) & family.architectures.keys())
    return Inspection(path, named, f"family {family}", "", _count(path, trust_remote_code), sizes)


def _by_transformers(path: Path, named: str, error: UnsupportedModel, trust_remote_code: bool) -> Inspection:
    if path.is_file():
        return Inspection(path, named, "", str(error), _count(path, trust_remote_code), None)
    from workers.model.backend.load import outline
    from workers.model.backend.probe import CannotServe, CodeFails

    parameters = _count(path, trust_remote_code)
    try:
        sizes: ModelSizes | None = outline(path, trust_remote_code).config
    except CodeFails:  # some code runs with weights only
        return Inspection(path, named, "transformers' code, if it passes the check at load", "", parameters, None)
    except (CannotServe, ModelLoadError) as refused:
        return Inspection(path, named, "", str(refused), parameters, None)
    return Inspection(path, named, "transformers' code", "", parameters, sizes)


def _count(path: Path, trust_remote_code: bool) -> int | None:
    """Of all tensors, tied ones once."""
    if path.is_file():
        file = open_gguf(path)
        return sum(prod(shape) for shape in file.shapes())
    from workers.model.backend.load import skeleton

    try:
        model: Any = skeleton(path, trust_remote_code)
    except ModelLoadError:
        return None
    return sum(int(parameter.numel()) for parameter in model.parameters())
