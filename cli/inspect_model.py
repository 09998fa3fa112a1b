"""`headrace inspect MODEL`: what a model is and needs, without loading its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from cli.errors import StartError
from cli.settings import InspectSettings
from workers.engine.config import EngineConfig
from workers.engine.memory import cache_budget
from workers.model.inspection import Inspection, inspect
from workers.model.interface import ModelSizes
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.resolve import resolve
from workers.model.loaders.tokenizer import load_tokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
GB = 1e9


def run(settings: InspectSettings) -> None:
    """Print a line for each thing known. Raises StartError where the model cannot be found or read."""
    try:
        path = resolve(settings.model, weights=False)
        found = inspect(path, trust_remote_code=settings.trust_remote_code)
    except ModelLoadError as error:
        raise StartError(str(error)) from error
    for name, value in _lines(found, settings):
        print(f"{name:<15}{value}")


def _lines(found: Inspection, settings: InspectSettings) -> list[tuple[str, str]]:
    lines = [
        ("model", str(found.path)),
        ("architecture", found.architecture),
        ("makes", found.makes),
        ("served by", found.by or f"nothing: {found.reason}"),
    ]
    if found.parameters is not None:
        lines.append(("parameters", f"{found.parameters:,}"))
        for name, dtype in DTYPES.items():
            lines.append((f"  {name}", f"{found.parameters * dtype.itemsize / GB:.2f} GB"))
    if found.sizes is not None:
        lines += _context(found.sizes, found.parameters or 0, settings)
    return lines + _tokenizer(found.path, settings.trust_remote_code)


def _context(sizes: ModelSizes, parameters: int, settings: InspectSettings) -> list[tuple[str, str]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = EngineConfig(model=settings.model, gpu_memory_fraction=settings.gpu_memory_fraction)
    lines = [("context", f"{sizes.max_position:,} tokens")]
    for name, dtype in DTYPES.items():
        token = sizes.kv_values_per_token * dtype.itemsize
        fits = max(0, cache_budget(config, sizes, device, parameters * dtype.itemsize)) // token
        place = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 2 GB cache"
        windows = _windows(sizes, token)
        lines.append((f"  {name}", f"{token:,} bytes of cache a token{windows}; {fits:,} tokens fit here ({place})"))
    return lines


def _windows(sizes: ModelSizes, token: int) -> str:
    """What of a token's bytes is kept when it has left the window of the layers that have one."""
    layout = sizes.kv_layout
    if not any(layout.windows):
        return ""
    kept = sum(layout.windows[group] == 0 for group, _ in layout.places)
    return f", {token * kept // sizes.num_layers:,} past {max(layout.windows):,} tokens"


def _tokenizer(path: Path, trust_remote_code: bool) -> list[tuple[str, str]]:
    try:
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    except ModelLoadError as error:
        return [("tokenizer", f"none: {error}")]
    template = "there" if getattr(tokenizer, "chat_template", None) else "missing"
    return [("tokenizer", f"{len(tokenizer):,} tokens"), ("chat template", template)]
