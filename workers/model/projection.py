"""What sentence-transformers' Dense modules do to a pooled state: products, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from workers.model.loaders.config import read_json
from workers.model.loaders.errors import ModelLoadError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Identity": lambda x: x, "Tanh": torch.tanh, "ReLU": torch.relu}


class Projection:
    """y = activation(x W^T + b) for each of `folders`, in fp32. Raises ModelLoadError. `width`: values of x, then of y."""

    def __init__(self, folders: Sequence[Path], width: int, device: torch.device) -> None:
        self._layers = []
        self.width = width
        for folder in folders:
            weight, bias, activation = _read(folder, self.width)
            self._layers.append((weight.to(device), None if bias is None else bias.to(device), activation))
            self.width = weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, width] fp32."""
        for weight, bias, activation in self._layers:
            x = activation(linear(x, weight, bias))
        return x


def _read(folder: Path, inputs: int) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
    named = str(read_json(folder / "config.json").get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if named not in _ACTIVATIONS:
        raise ModelLoadError(f"{folder}: activation {named} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.dim() != 2 or weight.shape[1] != inputs:
        raise ModelLoadError(f"{file}: tensor linear.weight is not there, or not made for {inputs} values")
    return weight.float(), None if bias is None else bias.float(), _ACTIVATIONS[named]
