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
from workers.model.loaders.pooling import causal_architecture, read_pooling


@dataclass(frozen=True, slots=True)
class Inspection:
    """makes: text or embeddings. by: what runs it, or an empty string, with the reason. parameters: None where nobody can
    count them. sizes: None where it has no cache."""

    path: Path
    architecture: str
    makes: str
    by: str
    reason: str
    parameters: int | None
    sizes: ModelSizes | None


def inspect(path: Path, *, trust_remote_code: bool = False) -> Inspection:
    """Raises ModelLoadError where its config cannot be read."""
    raw = read_config(path)
    named = ", ".join(raw.get("architectures") or []) or "unnamed"
    embeds = not path.is_file() and read_pooling(path, raw, "auto") is not None
    parameters = _count(path, trust_remote_code, embeds)
    makes = "embeddings" if embeds else "text"
    try:
        by, sizes = _family(raw)
        return Inspection(path, named, makes, by, "", parameters, sizes)
    except UnsupportedModel as error:
        if path.is_file():
            return Inspection(path, named, makes, "", str(error), parameters, None)
    if embeds:
        return Inspection(path, named, makes, "transformers' code", "", parameters, None)
    return Inspection(path, named, makes, *_by_transformers(path, parameters, trust_remote_code))


def _family(raw: dict[str, Any]) -> tuple[str, ModelSizes]:
    architecture = causal_architecture(raw)
    sizes = decoder_config(raw if architecture is None else {**raw, "architectures": [architecture]})
    names = {architecture, *(raw.get("architectures") or [])}
    return f"family {next(family.name for family in FAMILIES if names & family.architectures.keys())}", sizes


def _by_transformers(
    path: Path, parameters: int | None, trust_remote_code: bool
) -> tuple[str, str, int | None, ModelSizes | None]:
    from workers.model.backend.load import outline
    from workers.model.backend.probe import CannotServe, CodeFails

    try:
        return "transformers' code", "", parameters, outline(path, trust_remote_code).config
    except CodeFails:  # some code runs with weights only
        return "transformers' code, if it passes the check at load", "", parameters, None
    except (CannotServe, ModelLoadError) as refused:
        return "", str(refused), parameters, None


def _count(path: Path, trust_remote_code: bool, embeds: bool) -> int | None:
    """Of all tensors, tied ones once."""
    if path.is_file():
        return sum(prod(shape) for shape in open_gguf(path).shapes())
    from workers.model.backend.load import skeleton

    try:
        model: Any = skeleton(path, trust_remote_code, base=embeds)
    except ModelLoadError:
        return None
    return sum(int(parameter.numel()) for parameter in model.parameters())
