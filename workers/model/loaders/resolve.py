"""From what the user names to a path on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from workers.model.loaders.demo import default_cache_dir, fetch_demo
from workers.model.loaders.errors import ModelLoadError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_NOT_HUB_FILES = ["[!0-9]*/*.safetensors", "consolidated*.safetensors"]
"""The same weights again, in a layout of the makers' own. Folders with a number are sentence-transformers' modules."""


def resolve(model: str, *, cache_dir: Path | None = None, weights: bool = True) -> Path:
    """The folder or GGUF file that `model` names: an existing one, `demo`, or a hub id such as org/name, of which all but
    the weights is fetched with `weights` off.

    Downloads show their progress on stderr. Raises ModelLoadError.
    """
    if model == "demo":
        return fetch_demo(cache_dir or default_cache_dir())
    path = Path(model).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise ModelLoadError(f"{path} has no config.json: give a HuggingFace model folder, a .gguf file or a hub id")
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise ModelLoadError(f"{path} is not a .gguf file: give a HuggingFace model folder, a .gguf file or a hub id")
    if _HUB_ID.fullmatch(model):
        return _from_hub(model, cache_dir, weights)
    raise ModelLoadError(f"no model at {model!r}: give a model folder, a .gguf file, a hub id (org/name), or demo")


def _from_hub(model: str, cache_dir: Path | None, weights: bool) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    left_out = _NOT_HUB_FILES if weights else ["*.safetensors"]
    try:
        found = snapshot_download(model, cache_dir=cache_dir, allow_patterns=_HUB_FILES, ignore_patterns=left_out)
    except (HfHubHTTPError, httpx.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelLoadError(f"cannot get {model!r} from the HuggingFace hub: {reason}") from error
    if not (Path(found) / "config.json").is_file():
        raise ModelLoadError(
            f"{model!r} on the HuggingFace hub has no config.json; download its .gguf file and name that"
        )
    return Path(found)
