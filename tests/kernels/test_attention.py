"""Attention: the kernels against their twins, the twins against plain softmax over the keys that a query sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.attention import AttentionOptions
from kernels.decode_attention import (
    DecodeContext,
    decode_attention_torch,
    decode_attention_triton,
    num_splits,
    sequences_per_tile,
)
from kernels.prefill_attention import (
    PrefillContext,
    Span,
    plan_tiles,
    prefill_attention_torch,
    prefill_attention_triton,
)
from tests.kernels.conftest import DEVICE, error, limit

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []

BLOCK = 16
PLAIN = AttentionOptions(0.3)
OPTIONS = [
    AttentionOptions(0.3, window=1),
    AttentionOptions(0.3, window=2),
    AttentionOptions(0.3, window=16),
    AttentionOptions(0.3, window=37),
    AttentionOptions(0.3, window=129),
    AttentionOptions(0.3, window=130),  # the longest context of DECODE
    AttentionOptions(0.3, window=1000),
    AttentionOptions(0.3, soft_cap=2.0),
    AttentionOptions(20.0, soft_cap=5.0),  # nearly all logits at a bound
    AttentionOptions(0.3, window=37, soft_cap=2.0),
]
DECODE = [(1, 5), (1, 1), (1, 33), (1, 130)]
PREFILL = [(20, 70), (1, 5), (130, 200)]
"""(queries, context): the queries are the last of the context."""
LONG = 32_768 if DEVICE == "cuda" else 400


def alibi(heads: int, **options: Any) -> AttentionOptions:
    return AttentionOptions(0.3, slopes=torch.linspace(0.5, 0.01, heads, device=DEVICE), **options)


def sinks(heads: int, **options: Any) -> AttentionOptions:
    return AttentionOptions(0.3, sinks=torch.linspace(-2, 5, heads, device=DEVICE), **options)


def name(value: object) -> str:
    if not isinstance(value, AttentionOptions):
        return str(value)
    return f"window={value.window},cap={value.soft_cap}" + (
        ",alibi" if value.slopes is not None else ",sinks" if value.sinks is not None else ""
    )


def spans_of(pairs: list[tuple[int, int]]) -> list[Span]:
    starts = [sum(count for count, _ in pairs[:slot]) for slot in range(len(pairs))]
    return [Span(slot, starts[slot], count, context) for slot, (count, context) in enumerate(pairs)]


def paged(spans: list[Span], kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """A random cache, block 0 of zeros, and shuffled block tables."""
    blocks = [-(-span.context // BLOCK) for span in spans]
    cache = torch.randn(2, sum(blocks) + 1, kv_heads, BLOCK, dim, device=device).to(dtype)
    cache[:, 0] = 0
    tables = torch.zeros(len(spans), max(blocks), dtype=torch.int32)
    for row, own in enumerate((torch.randperm(sum(blocks)) + 1).split(blocks)):
        tables[row, : len(own)] = own
    return cache, tables.to(device)


def first_seen(position: int, options: AttentionOptions) -> int:
    return max(0, position - options.window + 1) if options.window else 0


def spoil_unseen(cache: Tensor, tables: Tensor, spans: list[Span], options: AttentionOptions) -> None:
    """NaN in every block of which no query sees a key: whoever reads one shows it."""
    unseen = torch.ones(cache.shape[1], dtype=torch.bool, device=cache.device)
    unseen[0] = False
    for span in spans:
        first = first_seen(span.context - span.count, options)
        unseen[tables[span.slot, first // BLOCK : -(-span.context // BLOCK)].long()] = False
    cache[:, unseen] = torch.nan


def softmax_attention(q: Tensor, cache: Tensor, tables: Tensor, spans: list[Span], options: AttentionOptions) -> Tensor:
    """By the definition, one query after the other. float32."""
    out = torch.empty_like(q, dtype=torch.float32)
    kv_heads, dim = cache.shape[2], cache.shape[4]
    for span in spans:
        whole = cache[:, tables[span.slot].long()].float().transpose(1, 2).reshape(2, kv_heads, -1, dim)
        for index in range(span.count):
            position = span.context - span.count + index
            keys, values = whole[:, :, first_seen(position, options) : position + 1]
            query = q[span.start + index].float().view(kv_heads, -1, dim)
            scores = query @ keys.transpose(1, 2) * options.scale
            if options.soft_cap:
                scores = options.soft_cap * torch.tanh(scores / options.soft_cap)
            if options.slopes is not None:
                distance = torch.arange(first_seen(position, options), position + 1, device=q.device) - position
                scores = scores + options.slopes.view(kv_heads, -1, 1) * distance
            if options.sinks is not None:
                scores = torch.cat((scores, options.sinks.view(kv_heads, -1, 1)), -1)
            out[span.start + index] = (scores.softmax(-1)[..., : keys.shape[1]] @ values).view(-1, dim)
    return out


def decode_context(tables: Tensor, spans: list[Span], kv_heads: int, shared: Tensor | None = None) -> DecodeContext:
    lengths = [span.context for span in spans]
    slots = torch.arange(len(spans), device=tables.device)
    return DecodeContext(slots, tables, torch.tensor(lengths).to(slots), max(lengths), kv_heads, BLOCK, shared)


def prefill_context(tables: Tensor, spans: list[Span]) -> PrefillContext:
    return PrefillContext(spans, tables, torch.from_numpy(plan_tiles(spans)).to(tables.device))


def queries(spans: list[Span], heads: int, dim: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(sum(span.count for span in spans), heads, dim, device=device).to(dtype)


def twin_of_decode(q: Tensor, cache: Tensor, context: DecodeContext, options: AttentionOptions) -> Tensor:
    return decode_attention_torch(q.float(), cache.float(), context, options, torch.empty_like(q.float()))


def twin_of_prefill(q: Tensor, cache: Tensor, context: PrefillContext, options: AttentionOptions) -> Tensor:
    return prefill_attention_torch(q.float(), cache.float(), context, options, torch.empty_like(q.float()))


SINKS = [sinks(6), sinks(6, window=37), sinks(6, soft_cap=2.0)]


@pytest.mark.parametrize(
    "options", [PLAIN, *OPTIONS, alibi(6), alibi(6, window=37), alibi(6, soft_cap=2.0), *SINKS], ids=name
)
@pytest.mark.parametrize("pairs", [DECODE, PREFILL, [(70, 70)]], ids=["decode", "prefill", "whole"])
def test_twins(pairs: list[tuple[int, int]], options: AttentionOptions, device: str) -> None:
    spans = spans_of(pairs)
    cache, tables = paged(spans, 2, 16, torch.float32, device)
    spoil_unseen(cache, tables, spans, options)
    q = queries(spans, 6, 16, torch.float32, device)
    want = softmax_attention(q, cache, tables, spans, options)
    assert error(twin_of_prefill(q, cache, prefill_context(tables, spans), options), want) < limit(torch.float32)
    if pairs == DECODE:
        assert error(twin_of_decode(q, cache, decode_context(tables, spans, 2), options), want) < limit(torch.float32)


def check_decode(
    spans: list[Span], shape: tuple[int, int, int], options: AttentionOptions, dtype: torch.dtype, device: str
) -> None:
    heads, kv_heads, dim = shape
    cache, tables = paged(spans, kv_heads, dim, dtype, device)
    spoil_unseen(cache, tables, spans, options)
    q = queries(spans, heads, dim, dtype, device)
    context = decode_context(tables, spans, kv_heads)
    got = decode_attention_triton(q, cache, context, options, torch.full_like(q, torch.nan))
    assert error(got, twin_of_decode(q, cache, context, options)) < limit(dtype)


@pytest.mark.parametrize("shape", [(6, 2, 16), (3, 3, 64), (9, 3, 24)])
@pytest.mark.parametrize("pairs", [[(1, 1)], DECODE])
def test_decode(pairs: list[tuple[int, int]], shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    check_decode(spans_of(pairs), shape, PLAIN, dtype, device)


@pytest.mark.parametrize("options", [*OPTIONS, alibi(6), alibi(6, window=37, soft_cap=2.0), *SINKS], ids=name)
def test_decode_with_options(options: AttentionOptions, dtype: torch.dtype, device: str) -> None:
    check_decode(spans_of(DECODE), (6, 2, 24), options, dtype, device)


SHARED_OPTIONS = [
    PLAIN,
    AttentionOptions(0.3, window=1),  # no query sees a shared key
    AttentionOptions(0.3, window=5),  # of two queries of a tile, one sees none
    AttentionOptions(0.3, window=49),  # one sees all, the other not the first
    AttentionOptions(0.3, window=500),
    AttentionOptions(0.3, window=33, soft_cap=2.0),
    alibi(64),
    alibi(64, window=33),
    sinks(64, window=33),
]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sequences", "options"),
    [(96, 2, 5, PLAIN), *((64, 1, 3, options) for options in SHARED_OPTIONS)],
    ids=name,
)
def test_decode_with_shared_blocks(
    heads: int, kv_heads: int, sequences: int, options: AttentionOptions, dtype: torch.dtype, device: str
) -> None:
    """The first tile shares three blocks, the second none; the last is not full."""
    spans = spans_of([(1, 49 + 5 * index) for index in range(sequences)])
    cache, tables = paged(spans, kv_heads, 16, dtype, device)
    tile = sequences_per_tile(heads, kv_heads)
    assert 1 < tile < sequences
    tables[:tile, :3] = tables[0, :3].clone()
    shared = torch.zeros(-(-sequences // tile), dtype=torch.int32, device=device)
    shared[0] = 3
    spoil_unseen(cache, tables, spans, options)
    q = queries(spans, heads, 16, dtype, device)
    cascade = decode_context(tables, spans, kv_heads, shared)
    got = decode_attention_triton(q, cache, cascade, options, torch.full_like(q, torch.nan))
    assert error(got, twin_of_decode(q, cache, decode_context(tables, spans, kv_heads), options)) < limit(dtype)


def test_splits_fill_the_gpu_and_no_more() -> None:
    assert num_splits(256, 8, 128) == 1
    assert num_splits(1, 8, 128) == 16
    assert num_splits(1, 8, 2) == 2
    assert num_splits(3, 8, 128) == 8
    assert num_splits(1, 8, 3) == 2


@pytest.mark.parametrize("window", [1, 2, 16, 17, 18, 33, 34])
def test_blocks_of_a_window(window: int) -> None:
    """The most that a query anywhere touches; fewer where the context has fewer."""
    options = AttentionOptions(1.0, window)
    touched = [position // BLOCK - first_seen(position, options) // BLOCK + 1 for position in range(200)]
    assert options.most_blocks(200, BLOCK) == max(touched)
    assert options.most_blocks(16, BLOCK) == 1
    assert AttentionOptions(1.0).most_blocks(200, BLOCK) == 13


def check_prefill(
    spans: list[Span], shape: tuple[int, int, int], options: AttentionOptions, dtype: torch.dtype, device: str
) -> None:
    heads, kv_heads, dim = shape
    cache, tables = paged(spans, kv_heads, dim, dtype, device)
    spoil_unseen(cache, tables, spans, options)
    q = queries(spans, heads, dim, dtype, device)
    context = prefill_context(tables, spans)
    got = prefill_attention_triton(q, cache, context, options, torch.full_like(q, torch.nan))
    assert error(got, twin_of_prefill(q, cache, context, options)) < limit(dtype)


@pytest.mark.parametrize("shape", [(4, 2, 16), (3, 1, 24)])
@pytest.mark.parametrize("pairs", [[(1, 1)], [(3, 9), (150, 150)], PREFILL])
def test_prefill(pairs: list[tuple[int, int]], shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    check_prefill(spans_of(pairs), shape, PLAIN, dtype, device)


@pytest.mark.parametrize(
    "options",
    [*OPTIONS, AttentionOptions(0.3, window=180), alibi(2), alibi(2, window=37), sinks(2), sinks(2, window=37)],
    ids=name,
)
def test_prefill_with_options(options: AttentionOptions, dtype: torch.dtype, device: str) -> None:
    check_prefill(spans_of(PREFILL), (2, 1, 24), options, dtype, device)


@pytest.mark.parametrize(("window", "soft_cap"), [(0, 0.0), (LONG // 8, 0.0), (LONG // 8 + 9, 2.0)])
def test_long_context(window: int, soft_cap: float, dtype: torch.dtype, device: str) -> None:
    """Against the definition; 32,768 tokens on the GPU, which are too many for the interpreter."""
    options = AttentionOptions(0.2, window, soft_cap)
    chunk, tokens = spans_of([(300 if DEVICE == "cuda" else 20, LONG)]), spans_of([(1, LONG), (1, LONG - 77)])
    for spans in (chunk, tokens):
        cache, tables = paged(spans, 1, 64, dtype, device)
        spoil_unseen(cache, tables, spans, options)
        q = queries(spans, 4, 64, dtype, device)
        out = torch.full_like(q, torch.nan)
        if spans is chunk:
            got = prefill_attention_triton(q, cache, prefill_context(tables, spans), options, out)
        else:
            got = decode_attention_triton(q, cache, decode_context(tables, spans, 1), options, out)
        assert error(got, softmax_attention(q, cache, tables, spans, options)) < limit(dtype)
