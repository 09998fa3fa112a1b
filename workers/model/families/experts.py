"""What configs of mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kernels.moe_routing import RoutingOptions
from workers.model.config import LayerConfig, MLPConfig, MoEConfig
from workers.model.families.common import activation
from workers.model.families.family import Raw

Vary = Callable[[int, LayerConfig], LayerConfig]
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def experts(raw: Raw, size: int, routing: RoutingOptions, *, shared: int = 0, **changes: Any) -> MoEConfig:
    """shared: inner values of the MLP that all tokens go through. Raises ValueError for a gate other than silu."""
    if activation(raw.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"experts with activation {raw['hidden_act']!r} are not supported; supported: silu")
    count = raw[next((name for name in _COUNTS if name in raw), _COUNTS[0])]
    return MoEConfig(
        experts=count, expert_size=size, routing=routing, shared=MLPConfig(size=shared) if shared else None, **changes
    )


def mixed(moe: MoEConfig, has_experts: Callable[[int], bool] = lambda index: True) -> Vary:
    """Gives the layers that have them their experts."""

    def vary(index: int, layer: LayerConfig) -> LayerConfig:
        return replace(layer, mlp=moe) if has_experts(index) else layer

    return vary


def both(first: Vary, second: Vary) -> Vary:
    return lambda index, layer: second(index, first(index, layer))


def behind(first: int) -> Callable[[int], bool]:
    """Layers from `first` on."""
    return lambda index: index >= first
