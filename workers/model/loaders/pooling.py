"""Whether a model folder is that of an embedding model, and how its vectors are made: by sentence-transformers' files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.model.families.registry import architectures
from workers.model.loaders.config import read_json
from workers.model.loaders.errors import ModelLoadError
from workers.model.pooling import Method, Pooling

_METHODS: dict[str, Method] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
}
_PREFIX = "pooling_mode_"


def read_pooling(path: Path, raw: dict[str, Any], task: str) -> Pooling | None:
    """None for a model that makes text. `task`: generate, embed, or auto, which is embed for a folder with
    sentence-transformers' modules and for a base model. Raises ModelLoadError for pooling that is not served."""
    modules = path / "modules.json"
    if task == "generate" or (task == "auto" and not modules.is_file() and not _is_base_model(raw)):
        return None
    longest = _max_length(path)
    if not modules.is_file():
        return Pooling("last" if causal_architecture(raw) else "mean", True, longest)
    return _from_modules(modules, longest)


def _from_modules(file: Path, longest: int | None) -> Pooling:
    modules = [(str(module["type"]).rsplit(".", 1)[-1], file.parent / module["path"]) for module in _modules(file)]
    kinds = [kind for kind, _ in modules]
    if (
        kinds[:2] != ["Transformer", "Pooling"]
        or set(kinds[2:-1]) - {"Dense"}
        or set(kinds[2:]) - {"Dense", "Normalize"}
    ):
        served = "Transformer, Pooling, then Dense as often as may be, then Normalize or not"
        raise ModelLoadError(f"{file}: modules {', '.join(kinds)} are not supported; supported: {served}")
    dense = tuple(path for kind, path in modules if kind == "Dense")
    return Pooling(_method(modules[1][1] / "config.json"), kinds[-1] == "Normalize", longest, dense)


def causal_architecture(raw: Mapping[str, Any]) -> str | None:
    """The decoder family's architecture that this model is, or is the base of. None where attention looks both ways."""
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention"):
        return None
    served = architectures()
    for name in raw.get("architectures") or []:
        for causal in (name, name.removesuffix("Model") + "ForCausalLM", name.removesuffix("Model") + "LMHeadModel"):
            if causal in served:
                return str(causal)
    return None


def _is_base_model(raw: dict[str, Any]) -> bool:
    names = raw.get("architectures") or []
    return any(name.endswith("Model") and not name.endswith("LMHeadModel") for name in names)


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise ModelLoadError(f"{path} is no list of modules")
    return modules


def _method(path: Path) -> Method:
    raw = read_json(path)
    named = raw.get("pooling_mode")
    chosen = (
        [named]
        if named
        else [key.removeprefix(_PREFIX) for key, on in raw.items() if key.startswith(_PREFIX) and on is True]
    )
    if len(chosen) != 1 or chosen[0] not in _METHODS:
        given = " and ".join(map(str, chosen)) or "of no kind"
        raise ModelLoadError(f"{path}: pooling {given} is not supported; supported: cls, mean, lasttoken")
    return _METHODS[chosen[0]]


def _max_length(path: Path) -> int | None:
    file = path / "sentence_bert_config.json"
    longest = read_json(file).get("max_seq_length") if file.is_file() else None
    return longest if isinstance(longest, int) else None
