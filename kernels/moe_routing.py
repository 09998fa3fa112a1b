"""Which experts compute which tokens: the router's choice, and tokens sorted by expert, all on the device.

Nothing here depends on what the host would have to read back: grids and arrays have the size of the worst case, so that the
whole is part of a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_SLICE, _STEP = 8, 64
"""Tiles written and counts read at a time, the same for all steps: where constants followed from a step's size, requests
would wait for kernels to compile."""


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """How a router's logits choose `top_k` experts a token.

    Scores are the softmax over all experts or the sigmoid of each. Experts are chosen by score plus a correction bias, where
    there is one, and weighted by their scores: `normalised` to a sum of 1 or not, times `scale`. With `groups` of
    neighbouring experts only those of the best `top_groups` are chosen from: best by their highest score (softmax) or the
    sum of their two highest (sigmoid), as DeepSeek V2 and V3 have it (arXiv:2405.04434, 2412.19437).
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1


class Routes(NamedTuple):
    """ids: [tokens, top_k] int32; weights: [tokens, top_k] fp32; counts: [programs, experts] int32, how many tokens of each
    `rows_of(tokens)` in a row chose an expert.

    With buckets, [experts, tokens] int32, counts is [experts]: the first counts[e] of row e are the pairs (token * top_k +
    choice) of expert e, in no order.
    """

    ids: Tensor
    weights: Tensor
    counts: Tensor
    buckets: Tensor | None = None


class Sorted(NamedTuple):
    """order: [tokens * top_k] int32, pairs token * top_k + choice, sorted by expert and stable. tiles: [most, 4] int32
    (expert, first row in `order`, rows, unused), as many as could be needed; those past the last one have no rows."""

    order: Tensor
    tiles: Tensor


def rows_of(tokens: int) -> int:
    """Tokens that one program routes."""
    return 1 if tokens == 1 else 4 if tokens <= 512 else 32


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """How many tiles of up to `rows` rows, each of one expert, hold `pairs` rows at worst."""
    return (pairs + min(pairs, experts) * (rows - 1)) // rows


@triton.jit
def _keep_best_groups(choice, column, experts, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TWO: tl.constexpr,
                      ROWS: tl.constexpr, WIDE: tl.constexpr, GROUPS_WIDE: tl.constexpr):  # fmt: skip
    """-inf in place of the choices outside the best groups."""
    group_of = column // (experts // GROUPS)
    slot = tl.arange(0, GROUPS_WIDE)[None, :]
    best = tl.full([ROWS, GROUPS_WIDE], -float("inf"), tl.float32)
    for group in tl.static_range(GROUPS):
        inside = tl.where((group_of == group)[None, :], choice, -float("inf"))
        top = tl.max(inside, 1)
        if TWO:
            first = tl.min(tl.where(inside == top[:, None], column[None, :], WIDE), 1)
            top += tl.max(tl.where(column[None, :] == first[:, None], -float("inf"), inside), 1)
        best = tl.where(slot == group, top[:, None], best)
    kept = tl.zeros([ROWS, WIDE], tl.int32)
    for _ in tl.static_range(TOP_GROUPS):
        peak = tl.max(best, 1)
        first = tl.min(tl.where(best == peak[:, None], slot, GROUPS_WIDE), 1)
        kept = tl.where(group_of[None, :] == first[:, None], 1, kept)
        best = tl.where(slot == first[:, None], -float("inf"), best)
    return tl.where(kept > 0, choice, -float("inf"))


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    logits, bias, ids, weights, counts, buckets, tokens, experts, scale,
    BUCKETS: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, SIGMOID: tl.constexpr,
    NORMALISED: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUPS_WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    program = tl.program_id(0)
    row = program * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    valid = row < tokens
    source = logits + row[:, None] * experts + column[None, :]
    values = tl.load(source, mask=valid[:, None] & (column < experts)[None, :], other=0.0).to(tl.float32)
    values = tl.where((column < experts)[None, :], values, -float("inf"))
    if SIGMOID:
        scores = tl.sigmoid(values)
    else:
        scores = tl.exp(values - tl.max(values, 1)[:, None])
        scores = scores / tl.sum(scores, 1)[:, None]
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias + column, mask=column < experts, other=0.0)[None, :]
    # what is chosen becomes -inf, so all else must be larger, and comparable: no expert is chosen twice, whatever the logits
    choice = tl.maximum(tl.where(choice == choice, choice, -1e30), -1e30)
    choice = tl.where((column < experts)[None, :], choice, -float("inf"))
    if GROUPS > 1:
        choice = _keep_best_groups(
            choice, column, experts, GROUPS, TOP_GROUPS, SIGMOID, ROWS, WIDE, GROUPS_WIDE
        )  # fmt: skip
    slot = tl.arange(0, SLOTS)[None, :]
    chosen = tl.zeros([ROWS, SLOTS], tl.int32)
    shares = tl.zeros([ROWS, SLOTS], tl.float32)
    taken = tl.zeros([ROWS, WIDE], tl.int32)
    for k in tl.static_range(TOP_K):
        peak, first = tl.max(choice, 1, return_indices=True)
        is_first = column[None, :] == first[:, None]
        chosen = tl.where(slot == k, first[:, None], chosen)
        if HAS_BIAS:
            peak = tl.sum(tl.where(is_first, scores, 0.0), 1)
        shares = tl.where(slot == k, peak[:, None], shares)
        taken = tl.where(is_first, 1, taken)
        choice = tl.where(is_first, -float("inf"), choice)
    if NORMALISED:
        shares = shares / (tl.sum(shares, 1) + 1e-20)[:, None]
    target = row[:, None] * TOP_K + slot
    inside = valid[:, None] & (slot < TOP_K)
    tl.store(ids + target, chosen, mask=inside)
    tl.store(weights + target, shares * scale, mask=inside)
    if BUCKETS:
        place = tl.atomic_add(counts + chosen, 1, mask=inside)
        tl.store(buckets + chosen * tokens + place, target, mask=inside)
    else:
        # summed up once: a sum over rows crosses warps (12 us for 8 tokens of 128 experts on an H200, one in each round)
        tally = tl.sum(tl.where(valid[:, None], taken, 0), 0)
        tl.store(counts + program * experts + column, tally, mask=column < experts)


def route_triton(logits: Tensor, bias: Tensor | None, options: RoutingOptions, zeros: Tensor | None = None) -> Routes:
    """As route; rows are contiguous. zeros: [experts] int32, which become the counts of buckets."""
    (tokens, experts), device = logits.shape, logits.device
    rows = rows_of(tokens)
    programs = triton.cdiv(tokens, rows)
    ids = torch.empty(tokens, options.top_k, dtype=torch.int32, device=device)
    weights = torch.empty(tokens, options.top_k, dtype=torch.float32, device=device)
    buckets = None if zeros is None else ids.new_empty(experts, tokens)
    counts = ids.new_empty(programs, experts) if zeros is None else zeros
    _route_kernel[(programs,)](
        logits, logits if bias is None else bias, ids, weights, counts, ids if buckets is None else buckets, tokens,
        experts, options.scale, buckets is not None, options.top_k, options.groups, options.top_groups,
        options.scoring == "sigmoid", options.normalised, bias is not None, rows, triton.next_power_of_2(experts),
        triton.next_power_of_2(options.top_k), triton.next_power_of_2(options.groups), logits.is_cuda,
        num_warps=min(rows, 16), launch_pdl=logits.is_cuda,
    )  # fmt: skip
    return Routes(ids, weights, counts, buckets)


def _best_groups(choice: Tensor, options: RoutingOptions) -> Tensor:
    grouped = choice.view(choice.shape[0], options.groups, -1)
    best = grouped.topk(2, -1).values.sum(-1) if options.scoring == "sigmoid" else grouped.amax(-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(options.top_groups, -1).indices, True)
    return grouped.masked_fill(~kept[:, :, None], -torch.inf).view(choice.shape)


def route_torch(logits: Tensor, bias: Tensor | None, options: RoutingOptions) -> Routes:
    """As route."""
    scores = logits.float().sigmoid() if options.scoring == "sigmoid" else logits.float().softmax(-1)
    choice = scores if bias is None else scores + bias
    if options.groups > 1:
        choice = _best_groups(choice, options)
    ids = choice.topk(options.top_k, -1).indices
    weights = scores.gather(1, ids)
    if options.normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    tokens, experts = logits.shape
    rows = rows_of(tokens)
    chosen = torch.zeros(-(-tokens // rows) * rows, experts, dtype=torch.int32, device=logits.device)
    chosen[:tokens].scatter_(1, ids, 1)
    return Routes(ids.int(), weights * options.scale, chosen.view(-1, rows, experts).sum(1, dtype=torch.int32))


def route(logits: Tensor, bias: Tensor | None, options: RoutingOptions) -> Routes:
    """logits: [tokens, experts]; bias: [experts] fp32, or None. Of equal choices the first ones are taken on the GPU."""
    run = route_triton if logits.is_cuda else route_torch
    return run(logits, bias, options)


@triton.jit(do_not_specialize=["tokens", "programs", "most"])
def _sort_kernel(
    ids, counts, order, tiles, tokens, experts, programs, most,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, TILE_ROWS: tl.constexpr, SLICE: tl.constexpr,
    STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A counting sort: each program places the pairs of one routing program, and writes slices of the tiles. A token
    chooses an expert once at most, so its place among the expert's pairs is the number of tokens before it that chose it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    program = tl.program_id(0)
    expert = tl.arange(0, WIDE)
    total = tl.zeros([WIDE], tl.int32)
    before = tl.zeros([WIDE], tl.int32)
    for start in range(0, programs, STEP):
        index = start + tl.arange(0, STEP)
        inside = (index < programs)[:, None] & (expert < experts)[None, :]
        part = tl.load(counts + index[:, None] * experts + expert[None, :], mask=inside, other=0)
        total += tl.sum(part, 0)
        before += tl.sum(tl.where((index < program)[:, None], part, 0), 0)
    first = tl.cumsum(total, 0) - total
    token = program * ROWS + tl.arange(0, ROWS)
    slot = tl.full([ROWS, WIDE], -1, tl.int32)
    for k in tl.static_range(TOP_K):
        chosen = tl.load(ids + token * TOP_K + k, mask=token < tokens, other=-1)
        slot = tl.where(chosen[:, None] == expert[None, :], k, slot)
    place = (first + before)[None, :] + tl.cumsum(tl.where(slot >= 0, 1, 0), 0) - 1
    tl.store(order + place, token[:, None] * TOP_K + slot, mask=slot >= 0)
    needed = tl.cdiv(total, TILE_ROWS)
    end = tl.cumsum(needed, 0)
    for start in range(program * SLICE, most, programs * SLICE):
        tile = start + tl.arange(0, SLICE)
        is_of = (tile[:, None] >= (end - needed)[None, :]) & (tile[:, None] < end[None, :])
        row = tl.where(is_of, (tile[:, None] - (end - needed)[None, :]) * TILE_ROWS, 0)
        left = tl.sum(tl.where(is_of, total[None, :] - row, 0), 1)
        target = tiles + tile * 4
        tl.store(target, tl.sum(tl.where(is_of, expert[None, :], 0), 1), mask=tile < most)
        tl.store(target + 1, tl.sum(tl.where(is_of, first[None, :] + row, 0), 1), mask=tile < most)
        tl.store(target + 2, tl.minimum(left, TILE_ROWS), mask=tile < most)


def sort_triton(routes: Routes, tile_rows: int) -> Sorted:
    """As sort_by_expert."""
    (tokens, top_k), (programs, experts), cuda = routes.ids.shape, routes.counts.shape, routes.ids.is_cuda
    most = most_tiles(tokens * top_k, experts, tile_rows)
    order, tiles = routes.ids.new_empty(tokens * top_k), routes.ids.new_empty(most, 4)
    _sort_kernel[(programs,)](
        routes.ids, routes.counts, order, tiles, tokens, experts, programs, most,
        top_k, rows_of(tokens), triton.next_power_of_2(experts), tile_rows, _SLICE, _STEP, cuda,
        num_warps=8, launch_pdl=cuda,
    )  # fmt: skip
    return Sorted(order, tiles)


def sort_torch(routes: Routes, tile_rows: int) -> Sorted:
    """As sort_by_expert."""
    experts = routes.counts.shape[1]
    flat = routes.ids.flatten()
    order = flat.argsort(stable=True).int()
    tiles, first = [], 0
    for expert, total in enumerate(flat.bincount(minlength=experts).tolist()):
        tiles += [(expert, first + row, min(tile_rows, total - row), 0) for row in range(0, total, tile_rows)]
        first += total
    tiles += [(0, 0, 0, 0)] * (most_tiles(len(flat), experts, tile_rows) - len(tiles))
    return Sorted(order, torch.tensor(tiles, dtype=torch.int32, device=flat.device))


def sort_by_expert(routes: Routes, tile_rows: int) -> Sorted:
    """Tiles of up to `tile_rows` rows of one expert each."""
    run = sort_triton if routes.ids.is_cuda else sort_torch
    return run(routes, tile_rows)
