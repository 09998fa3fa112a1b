"""What is changed in a model of transformers before it is served: it computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kernels.matvec import matvec_triton
from kernels.norm import add_rms_norm

_TRIALS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative difference that rounding makes."""


@torch.inference_mode()
def tune(model: nn.Module) -> None:
    """Norms and products of one row by our kernels. On an H100 a norm is one kernel in place of six."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _tune_norm(module)
        elif type(module) is nn.Linear and module.weight.is_cuda:
            setattr(module, "forward", _product(module))  # noqa: B010 - a method, to a type checker


def _product(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.numel() != module.in_features or x.dtype != module.weight.dtype:
            return linear(x, module.weight, module.bias)
        return matvec_triton(x.reshape(1, -1), module.weight, module.bias).view(*x.shape[:-1], -1)

    return forward


def _tune_norm(module: nn.Module) -> None:
    """What goes by this name is not the same everywhere (Gemma adds 1 to its weights), so it is tried."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    alone = len(inspect.signature(module.forward).parameters) == 1
    if not alone or not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return
    size, kind = len(weight), weight.dtype
    x = torch.linspace(-2.0, 3.0, 3 * size, device=weight.device, dtype=kind).view(3, size)
    for gain in (weight, weight.float() + 1.0):
        forward = _norm(size, gain, eps)
        want, got = module(x), forward(x)
        if want.dtype == kind and float((got - want).float().norm()) <= _TRIALS[kind] * float(want.float().norm()):
            setattr(module, "forward", forward)  # noqa: B010 - as above
            return


def _norm(size: int, gain: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return add_rms_norm(x.reshape(-1, size), None, gain, eps)[0].view(x.shape)

    return forward


@torch.inference_mode()
def settle_rope(model: nn.Module, longest: int) -> None:
    """Rotations that stretch with the context are set for the longest one: a key in the cache keeps the rotation that it was
    written with, and the sequences of a batch are of any length."""
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _stretches(kinds):
            _settle(module, longest, {})
            module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(kinds, dict):
            for layers in [name for name, kind in kinds.items() if _stretches(kind)]:
                _settle(module, longest, {"layer_type": layers})
                kinds[layers] = "default"


def _stretches(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _settle(module: nn.Module, longest: int, given: dict[str, str]) -> None:
    device = next(module.buffers()).device
    module(torch.zeros(1, device=device), torch.full((1, 1), longest - 1, device=device), **given)
