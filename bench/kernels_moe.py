"""The part of `headrace bench kernels` for mixtures of experts: routing, sorting, and the experts' products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from kernels.moe import mix_experts
from kernels.moe_experts import Experts
from kernels.moe_gemm import plan_for
from kernels.moe_routing import Routes, route, sort_by_expert
from workers.model.config import DecoderConfig, MoEConfig

MakeCase = Callable[..., Any]
SETS = 20
"""Choices that calls take in turn, so that few tokens do not find their experts in L2."""


def moe_cases(config: DecoderConfig, dtype: torch.dtype, case: MakeCase) -> Iterator[Any]:
    """Cases, made by `case`, of the first layer with experts; none where there is none."""
    moe = next((layer.mlp for layer in config.layers if isinstance(layer.mlp, MoEConfig)), None)
    if moe is None:
        return
    shape = (2 * moe.expert_size, config.hidden_size)
    gate_up = torch.empty(moe.experts, *shape, device="cuda", dtype=dtype).normal_(0.0, 0.02)
    down = torch.empty(moe.experts, shape[1], moe.expert_size, device="cuda", dtype=dtype).normal_(0.0, 0.02)
    experts = Experts(gate_up, down, alpha=moe.alpha, limit=moe.limit)
    for tokens in (1, 4, 16, 64, 256, 512, 2048, 8192):
        yield from _cases(moe, experts, tokens, case)


def _cases(moe: MoEConfig, experts: Experts, tokens: int, case: MakeCase) -> Iterator[Any]:
    hidden, size = experts.down.shape[1], f"{tokens} tokens"
    x = torch.randn(tokens, hidden, device="cuda").to(experts.down.dtype)
    logits = torch.randn(SETS, tokens, moe.experts, device="cuda").to(x.dtype)
    chosen = [route(each, None, moe.routing) for each in logits]
    yield case("route", size, "memory", logits[0].nbytes, lambda: route(logits[0], None, moe.routing))
    rows = plan_for(chosen[0].ids.numel(), moe.experts).rows
    yield case("sort", size, "memory", chosen[0].ids.nbytes, lambda: sort_by_expert(chosen[0], rows))
    turn = iter(range(1 << 62))

    def run() -> torch.Tensor:
        return mix_experts(x, chosen[next(turn) % SETS], experts)

    weights = (experts.gate_up[0].nbytes + experts.down[0].nbytes) * _used(chosen)
    products = 2 * 3 * chosen[0].ids.numel() * hidden * experts.inner
    if tokens * moe.routing.top_k < 200 * moe.experts:  # below it reading weights takes longer than the products
        yield case("experts", size, "memory", weights, run)
    else:
        yield case("experts", size, "arithmetic", products, run)


def _used(chosen: list[Routes]) -> float:
    """Experts of a call, on average."""
    return sum(len(set(routes.ids.flatten().tolist())) for routes in chosen) / len(chosen)
