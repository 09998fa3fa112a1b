"""A mixture of experts in place of a layer's MLP. Nothing waits for the device, and all shapes follow from the tokens'."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.moe import mix_experts, use_buckets
from kernels.moe_experts import Experts
from kernels.moe_router import route_into_buckets_triton
from kernels.moe_routing import Routes, route
from workers.model.config import MoEConfig
from workers.model.linear import Linear
from workers.model.mlp import build_mlp
from workers.model.mxfp4 import read_mxfp4
from workers.model.names import WeightNames
from workers.model.weights import Weights


class Router:
    """Chooses the experts of each token."""

    def __init__(self, config: MoEConfig, hidden: int, weights: Weights, names: WeightNames) -> None:
        self.options = config.routing
        self.weight, self.bias = weights.linear(names.router, config.experts, hidden, config.router_bias)
        self.linear = Linear(self.weight, self.bias)
        self.wide = self.weight.float() if config.wide_router else None
        self.correction = weights.wide(names.correction, (config.experts,)) if config.correction else None

    def __call__(self, x: Tensor) -> Routes:
        if use_buckets(x, self.options.top_k):  # its logits are fp32, whatever the weights are
            return route_into_buckets_triton(x, self.weight, self.bias, self.correction, self.options)
        logits = self.linear(x) if self.wide is None else linear(x.float(), self.wide)
        return route(logits, self.correction, self.options)


class MoE:
    def __init__(self, config: MoEConfig, hidden: int, weights: Weights, names: WeightNames) -> None:
        self.router = Router(config, hidden, weights, names)
        self.experts = read_experts(config, hidden, weights, names)
        self.shared = build_mlp(config.shared, hidden, weights, names.shared) if config.shared else None
        self.shared_gate = Linear(*weights.linear(names.shared_gate, 1, hidden, False)) if config.shared_gate else None

    def __call__(self, x: Tensor) -> Tensor:
        out = mix_experts(x, self.router(x), self.experts)
        if self.shared is None:
            return out
        shared = self.shared(x)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x).sigmoid()
        return out.add_(shared)


def read_experts(config: MoEConfig, hidden: int, weights: Weights, names: WeightNames) -> Experts:
    """In the layout of the kernels, from any that checkpoints have. One copy, but for one expert's (each) or one layer's."""
    gate_up, down = _stacked(config, hidden, weights, names)
    if not config.bias:
        return Experts(gate_up, down, alpha=config.alpha, limit=config.limit)
    gate_up_bias = weights.tensor(f"{names.experts_gate_up}_bias", (config.experts, 2 * config.expert_size))
    down_bias = weights.tensor(f"{names.experts_down}_bias", (config.experts, hidden))
    if names.experts_layout in ("interleaved", "mxfp4"):
        gate_up_bias = torch.cat((gate_up_bias[:, 0::2], gate_up_bias[:, 1::2]), 1)
    return Experts(gate_up, down, gate_up_bias, down_bias, config.alpha, config.limit)


def _stacked(config: MoEConfig, hidden: int, weights: Weights, names: WeightNames) -> tuple[Tensor, Tensor]:
    """[experts, 2 * size, hidden] and [experts, hidden, size]."""
    count, size = config.experts, config.expert_size
    if names.experts_layout == "stacked":
        gate_up = weights.tensor(names.experts_gate_up, (count, 2 * size, hidden))
        return gate_up, weights.tensor(names.experts_down, (count, hidden, size))
    if names.experts_layout == "interleaved":
        gate_up = weights.tensor(names.experts_gate_up, (count, hidden, 2 * size))
        down = weights.tensor(names.experts_down, (count, size, hidden))
        return torch.cat((gate_up[:, :, 0::2].mT, gate_up[:, :, 1::2].mT), 1), down.mT.contiguous()
    if names.experts_layout == "mxfp4":
        kind = weights.tensor(f"{names.router}.weight", (count, hidden)).dtype
        gate_up = read_mxfp4(weights, names.experts_gate_up, (count, 2 * size, hidden), kind)
        down = read_mxfp4(weights, names.experts_down, (count, hidden, size), kind)
        return torch.cat((gate_up[:, 0::2], gate_up[:, 1::2]), 1), down
    gate_up = weights.each(names.expert_gate_up, count, [size, size], hidden)
    return gate_up, weights.each((names.expert_down,), count, [hidden], size)
