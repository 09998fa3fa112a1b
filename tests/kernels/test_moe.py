"""Mixtures of experts: routing against its twin, and both regimes of the experts' products against theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.moe import mix_experts, mix_experts_torch, use_buckets
from kernels.moe_experts import Experts
from kernels.moe_gemm import PLANS, Plan, Tile, experts_gemm_triton, plan_for
from kernels.moe_matvec import experts_matvec_triton
from kernels.moe_router import route_into_buckets_triton
from kernels.moe_routing import (
    Routes,
    RoutingOptions,
    most_tiles,
    route,
    route_torch,
    route_triton,
    rows_of,
    sort_torch,
    sort_triton,
)
from tests.kernels.conftest import DEVICE, error, limit

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []

OPTIONS = {
    "softmax": RoutingOptions(3, normalised=False),
    "normalised": RoutingOptions(8),
    "one": RoutingOptions(1, scale=2.5),
    "sigmoid": RoutingOptions(4, "sigmoid", scale=1.5),
    "best-groups": RoutingOptions(3, normalised=False, groups=4, top_groups=2),
    "best-two-of-groups": RoutingOptions(6, "sigmoid", groups=6, top_groups=3),
}


def routes_of(ids: Tensor) -> Routes:
    """Routes of given choices, with random weights."""
    tokens, experts, rows = len(ids), 12, rows_of(len(ids))
    chosen = torch.zeros(-(-tokens // rows) * rows, experts, dtype=torch.int32, device=ids.device)
    chosen[:tokens].scatter_add_(1, ids.long(), torch.ones_like(ids, dtype=torch.int32))
    weights = torch.rand(ids.shape, device=ids.device)
    return Routes(ids.int(), weights, chosen.view(-1, rows, experts).sum(1, dtype=torch.int32))


def choices(kind: str, tokens: int, top_k: int) -> Tensor:
    """[tokens, top_k] of 12 experts, none twice in a row."""
    first = torch.zeros(tokens, 1, dtype=torch.int64) if kind == "one expert" else torch.randint(0, 12, (tokens, 1))
    step = 5 if kind == "one expert" else 7
    return ((first + step * torch.arange(top_k)) % 12).to(DEVICE)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("tokens", "biased"), [(1, False), (9, True), (9, False)])
def test_routing(name: str, tokens: int, biased: bool, device: str) -> None:
    check_routing(OPTIONS[name], tokens, biased, device)


def test_routing_of_a_prompt(device: str) -> None:
    check_routing(OPTIONS["sigmoid"], 1030, True, device)


def check_routing(options: RoutingOptions, tokens: int, biased: bool, device: str) -> None:
    logits = torch.randn(tokens, 24, device=device)
    bias = torch.randn(24, device=device) if biased else None
    want, got = route_torch(logits, bias, options), route_triton(logits, bias, options)
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.counts, want.counts)
    assert int(got.counts.sum()) == tokens * options.top_k
    assert error(got.weights, want.weights) < 1e-6
    if options.normalised:
        assert torch.allclose(got.weights.sum(1), torch.full((tokens,), options.scale, device=device))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_logits_lead_outside_the_experts(value: float, device: str) -> None:
    """Nor to one of them twice: sorting counts on it."""
    logits = torch.randn(2, 24, device=device)
    logits[1] = value
    ids = route_triton(logits, torch.zeros(24, device=device), RoutingOptions(4)).ids
    assert bool(((ids >= 0) & (ids < 24)).all())
    assert all(len(set(row)) == 4 for row in ids.tolist())


@pytest.mark.parametrize(
    ("kind", "tokens", "top_k"), [("spread", 1, 3), ("spread", 21, 3), ("one expert", 40, 1), ("spread", 300, 2)]
)
@pytest.mark.parametrize("tile_rows", [16, 32])
def test_sorting(kind: str, tokens: int, top_k: int, tile_rows: int, device: str) -> None:
    routes = routes_of(choices(kind, tokens, top_k))
    want, got = sort_torch(routes, tile_rows), sort_triton(routes, tile_rows)
    assert torch.equal(got.order, want.order)
    used = want.tiles[:, 2] > 0
    assert torch.equal(got.tiles[:, 2], want.tiles[:, 2])
    assert torch.equal(got.tiles[used][:, :3], want.tiles[used][:, :3])


def test_no_spread_of_pairs_needs_more_tiles(device: str) -> None:
    for counts in ([1] * 12, [17] * 12, [205] + [1] * 11, [0] * 11 + [33], [16, 16, 1]):
        needed = sum(-(-count // 16) for count in counts)
        assert needed <= most_tiles(sum(counts), 12, 16)
    assert most_tiles(3, 12, 16) == 3


def experts_of(hidden: int, inner: int, dtype: torch.dtype, device: str, extra: bool) -> Experts:
    """12 experts; `extra`: with biases and the clamped gate."""

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=device) * scale).to(dtype)

    biases: dict[str, Any] = {}
    if extra:
        biases = dict(
            gate_up_bias=random(12, 2 * inner), down_bias=random(12, hidden), alpha=1.7, limit=1.5
        )  # fmt: skip
    gate_up = random(12, 2 * inner, hidden, scale=hidden**-0.5)
    return Experts(gate_up, random(12, hidden, inner, scale=inner**-0.5), **biases)


def in_double(experts: Experts) -> Experts:
    tensors = (experts.gate_up, experts.down, experts.gate_up_bias, experts.down_bias)
    return Experts(*(None if t is None else t.double() for t in tensors), experts.alpha, experts.limit)  # type: ignore[arg-type]


def check(run: Any, ids: Tensor, hidden: int, inner: int, extra: bool, dtype: torch.dtype, device: str) -> None:
    routes, experts = routes_of(ids), experts_of(hidden, inner, dtype, device, extra)
    x = torch.randn(len(ids), hidden, device=device).to(dtype)
    want = mix_experts_torch(x.double(), routes, in_double(experts))
    assert error(mix_experts_torch(x, routes, experts), want) < limit(dtype)
    assert error(run(x, routes, experts), want) < limit(dtype)


SHAPES = [(40, 24, False), (136, 72, True)]


@pytest.mark.parametrize(("hidden", "inner", "extra"), SHAPES)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 4), (3, 2)])
def test_few_tokens(
    tokens: int, top_k: int, hidden: int, inner: int, extra: bool, dtype: torch.dtype, device: str
) -> None:
    ids = choices("spread", tokens, top_k)
    check(
        lambda *given: experts_matvec_triton(*given, (16, 128, 1), (32, 64, 1)),
        ids,
        hidden,
        inner,
        extra,
        dtype,
        device,
    )


@pytest.mark.parametrize(("hidden", "inner", "extra"), SHAPES)
@pytest.mark.parametrize(
    ("kind", "tokens", "top_k"), [("spread", 1, 1), ("spread", 21, 3), ("one expert", 37, 1), ("one expert", 5, 2)]
)
def test_many_tokens(
    kind: str, tokens: int, top_k: int, hidden: int, inner: int, extra: bool, dtype: torch.dtype, device: str
) -> None:
    plan = Plan(16, Tile(64, 64, 4, 2), Tile(64, 32, 4, 2))
    ids = choices(kind, tokens, top_k)
    check(lambda *given: experts_gemm_triton(*given, plan), ids, hidden, inner, extra, dtype, device)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("tokens", "hidden", "biased"), [(9, 40, False), (21, 136, True)])
def test_routing_into_buckets(
    name: str, tokens: int, hidden: int, biased: bool, dtype: torch.dtype, device: str
) -> None:
    options = OPTIONS[name]
    x, weight = (torch.randn(rows, hidden, device=device).to(dtype) for rows in (tokens, 24))
    bias, correction = torch.randn(24, device=device).to(dtype), torch.randn(24, device=device)
    given = (bias, correction) if biased else (None, None)
    got = route_into_buckets_triton(x, weight, *given, options)
    logits = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    want = route_torch(logits, given[1], options)
    assert torch.equal(got.ids, want.ids)
    assert error(got.weights, want.weights) < limit(torch.float32)
    assert torch.equal(got.counts, want.counts.sum(0, dtype=torch.int32))
    assert got.buckets is not None
    for expert, count in enumerate(got.counts.tolist()):
        pairs = (want.ids.flatten() == expert).nonzero().flatten().tolist()
        assert sorted(got.buckets[expert, :count].tolist()) == pairs


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # rows of a bucket that nobody wrote are multiplied with the others
@pytest.mark.parametrize("plan", [Plan(16, Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)), PLANS[32]], ids=["16", "32"])
@pytest.mark.parametrize("tokens", [3, 45])
def test_products_of_buckets(tokens: int, plan: Plan, dtype: torch.dtype, device: str) -> None:
    """45 tokens: some experts have more than a tile's; 3: most have none."""
    experts = experts_of(40, 24, dtype, device, True)
    x = torch.randn(tokens, 40, device=device).to(dtype)
    weight = torch.randn(12, 40, device=device).to(dtype)
    routes = route_into_buckets_triton(x, weight, None, None, RoutingOptions(5))
    assert tokens < 45 or int(routes.counts.max()) > 16
    want = mix_experts_torch(x.double(), routes, in_double(experts))
    assert error(experts_gemm_triton(x, routes, experts, plan), want) < limit(dtype)


@pytest.mark.parametrize("rows", PLANS)
def test_every_plan(rows: int, device: str) -> None:
    ids, dtype = choices("spread", 70, 2), torch.bfloat16 if device == "cuda" else torch.float32
    check(lambda *given: experts_gemm_triton(*given, PLANS[rows]), ids, 40, 24, False, dtype, device)


def test_tiles_grow_with_the_tokens_of_an_expert() -> None:
    rows = [plan_for(pairs, 128).rows for pairs in (64, 512, 2048, 4096, 65536)]
    assert rows == sorted(rows)
    assert rows[0] == 16
    assert rows[-1] == 128


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [1, 20, 600])
def test_in_a_cuda_graph(tokens: int, device: str) -> None:
    """Other tokens, which go to other experts, through what was captured; nothing waits for the device."""
    experts, options = experts_of(136, 72, torch.bfloat16, device, True), RoutingOptions(5)
    x, others = (torch.randn(tokens, 136, device=device).bfloat16() for _ in range(2))
    weight = torch.randn(12, 136, device=device).bfloat16()

    def run() -> tuple[Routes, Tensor]:
        if use_buckets(x, options.top_k):
            routes = route_into_buckets_triton(x, weight, None, None, options)
        else:
            routes = route(torch.nn.functional.linear(x, weight), None, options)
        return routes, mix_experts(x, routes, experts)

    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routes, got = run()
    x.copy_(others)
    graph.replay()
    assert error(got, mix_experts_torch(x.double(), routes, in_double(experts))) < limit(torch.bfloat16)
