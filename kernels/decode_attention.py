"""Attention of one query a sequence over the paged cache of one layer, [2, blocks, kv_heads, block_size, head_dim].

On the GPU the query heads that share a kv head are the rows of one tensor-core tile (grouped-query packing), and long
contexts are split over programs whose partial softmaxes a second kernel merges by their log-sum-exp (Dao et al. 2023,
Flash-Decoding). Where neighbouring sequences share leading blocks, a further kernel reads those once for a whole tile of
sequences and the rest is computed as usual (Juravsky et al. 2024, Hydragen, arXiv:2402.05099). The kernels of a decode
step are launched as programmatic dependents (PDL): each starts while the one before drains and waits for its results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention import AttentionOptions, alibi_torch, attend_torch, empty_softmax, soft_cap

_PROGRAMS = 264
"""Programs that fill a GPU of 132 multiprocessors twice."""
_SHARED_ROWS = 128
"""Query rows of a tile that reads shared blocks once."""
_SHARED_SPLITS = 4
SPLITS = (1, 2, 4, 8, 16)
"""How many programs may share a sequence: few choices, since each is a kernel of its own."""


def sequences_per_tile(heads: int, kv_heads: int) -> int:
    """Sequences whose shared leading blocks are read once."""
    return _SHARED_ROWS // triton.next_power_of_2(heads // kv_heads)


@dataclass
class DecodeContext:
    """Which keys the queries see. slots: [sequences] int64 rows of block_tables [slots, table_length] int32 and of
    lengths [slots] int64, tokens in the cache with the query's own. max_length bounds the lengths: what the CPU gathers and
    what the GPU plans its splits for. shared_blocks: [tiles] int32, leading blocks that all sequences of a tile of
    `sequences_per_tile` have in common, or None: a hint, which changes no result."""

    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    max_length: int
    kv_heads: int
    block_size: int
    shared_blocks: Tensor | None = None

    _views: dict[AttentionOptions, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def view(self, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        """What the CPU gathers, found once for all layers of the same options.

        Rows of the cache viewed as [blocks * kv_heads, ...], by sequence, kv head, block; [sequences, 1, 1, keys] bool, true
        where a key of those rows is seen; and [sequences, keys], the position of each, from the query's on.
        """
        if options not in self._views:
            self._views[options] = self._find_view(options)
        return self._views[options]

    def _find_view(self, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        lengths = self.lengths[self.slots][:, None]
        oldest = (lengths - options.window).clamp(min=0) if options.window else torch.zeros_like(lengths)
        count = options.most_blocks(self.max_length, self.block_size)
        blocks = oldest // self.block_size + torch.arange(count, device=lengths.device)
        # blocks past a context's end, which nobody sees, may lie past the table's
        tables = self.block_tables[self.slots[:, None], blocks.clamp(max=self.block_tables.shape[1] - 1)]
        heads = torch.arange(self.kv_heads, device=lengths.device)
        rows = (tables[:, None, :].long() * self.kv_heads + heads[None, :, None]).flatten()
        keys = (blocks[:, :, None] * self.block_size + torch.arange(self.block_size, device=lengths.device)).flatten(1)
        return rows, ((keys >= oldest) & (keys < lengths))[:, None, None, :], keys - lengths + 1


@triton.jit
def _start_after_previous(PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _split_of(begin, end, split, SPLITS: tl.constexpr):
    """The part of blocks [begin, end) that is this split's."""
    share = tl.cdiv(end - begin, SPLITS)
    first = begin + split * share
    return first, tl.minimum(first + share, end)


@triton.jit
def _attend(
    q, q_rows, valid, cache, value_offset, table, kv_head, begin, end, oldest, newest, length, scale, slope, peak, total,
    CAP_RATE: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of queries over the blocks [begin, end) of a block table: maxima and totals [ROWS] and unnormalised sums
    [ROWS, WIDE] of an online softmax. Keys from `length` on, and a row's keys before its `oldest`, are left out; `newest` is
    a row's own position, from which `slope` counts. peak, total: what the softmax begins with."""
    column = tl.arange(0, WIDE)
    q_mask = valid[:, None] & (column < DIM)[None, :]
    queries = tl.load(q + q_rows[:, None] * DIM + column[None, :], mask=q_mask, other=0.0)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    for index in range(begin, end):
        block_row = tl.load(table + index).to(tl.int64) * KV_HEADS + kv_head
        key = tl.arange(0, BLOCK_SIZE)
        source = cache + block_row * (BLOCK_SIZE * DIM) + key[:, None] * DIM + column[None, :]
        position = index * BLOCK_SIZE + key
        inside = (position < length)[:, None] & (column < DIM)[None, :]
        keys = tl.load(source, mask=inside, other=0.0)
        values = tl.load(source + value_offset, mask=inside, other=0.0)
        scores = soft_cap(tl.dot(queries, tl.trans(keys), input_precision="ieee"), CAP_RATE) * scale
        if ALIBI:
            scores += slope[:, None] * (position[None, :] - newest[:, None]).to(tl.float32)
        # finite, so that a row which sees no key of a block stays finite: its sums count for nothing after the next key
        scores = tl.where((position < length)[None, :], scores, -1e30)
        if WINDOW > 0:
            scores = tl.where(position[None, :] >= oldest[:, None], scores, -1e30)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        peak = new_peak
    return peak, total, acc


@triton.jit
def _store_way(partial, row, way, peak, total, acc, valid, WAYS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):
    """A way's row: DIM unnormalised sums, then their maximum and total."""
    column = tl.arange(0, WIDE)
    base = partial + (row * WAYS + way) * (DIM + 2)
    tl.store(base[:, None] + column[None, :], acc, mask=valid[:, None] & (column < DIM)[None, :])
    tl.store(base + DIM, peak, mask=valid)
    tl.store(base + DIM + 1, total, mask=valid)


@triton.jit
def _slopes_of(slopes, head, valid):
    """In units of log2."""
    return tl.load(slopes + head, mask=valid, other=0.0) * 1.4426950408889634


@triton.jit
def _decode_kernel(
    q, cache, tables, lengths, slots, slopes, sinks, shared, out, partial, scale, table_stride, value_offset,
    SINKS: tl.constexpr, CAP_RATE: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    _start_after_previous(PDL)
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot = tl.load(slots + sequence)
    length = tl.load(lengths + slot).to(tl.int32)
    first = 0
    if TILE > 0:
        first = tl.load(shared + sequence // TILE)
    oldest = tl.zeros([ROWS], tl.int32)
    if WINDOW > 0:
        first = tl.maximum(first, (length - WINDOW) // BLOCK_SIZE)
        oldest += length - WINDOW
    begin, end = _split_of(first, tl.cdiv(length, BLOCK_SIZE), split, SPLITS)
    row = tl.arange(0, ROWS)
    valid = row < GROUP
    q_rows = sequence * HEADS + (kv_head * GROUP + row)
    slope = tl.zeros([ROWS], tl.float32)
    if ALIBI:
        slope = _slopes_of(slopes, kv_head * GROUP + row, valid)
    newest = tl.zeros([ROWS], tl.int32) + length - 1
    # only the first split's softmax has the sink
    peak, total = empty_softmax(sinks, kv_head * GROUP + row, valid, split == 0, SINKS, ROWS)
    peak, total, acc = _attend(
        q, q_rows, valid, cache, value_offset, tables + slot * table_stride, kv_head, begin, end, oldest, newest, length,
        scale, slope, peak, total, CAP_RATE, WINDOW, ALIBI, KV_HEADS, DIM, BLOCK_SIZE, ROWS, WIDE,
    )  # fmt: skip
    if WAYS == 1:
        column = tl.arange(0, WIDE)
        target = out + q_rows[:, None] * DIM + column[None, :]
        q_mask = valid[:, None] & (column < DIM)[None, :]
        tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=q_mask)
    else:
        _store_way(partial, q_rows, split, peak, total, acc, valid, WAYS, DIM, WIDE)


@triton.jit(do_not_specialize=["count"])
def _shared_kernel(
    q, cache, tables, lengths, slots, slopes, shared, partial, scale, table_stride, value_offset, count,
    CAP_RATE: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
    FIRST_WAY: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    _start_after_previous(PDL)
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot = tl.load(slots + tile * TILE)
    blocks = tl.load(shared + tile)
    row = tl.arange(0, ROWS)
    sequence = tile * TILE + row // (ROWS // TILE)
    member = row % (ROWS // TILE)
    valid = (member < GROUP) & (sequence < count)
    first = 0
    oldest = tl.zeros([ROWS], tl.int32)
    newest = tl.zeros([ROWS], tl.int32)
    slope = tl.zeros([ROWS], tl.float32)
    if WINDOW > 0 or ALIBI:
        row_slots = tl.load(slots + sequence, mask=valid, other=0)
        newest = tl.load(lengths + row_slots, mask=valid, other=1 << 30).to(tl.int32) - 1
    if ALIBI:
        slope = _slopes_of(slopes, kv_head * GROUP + member, valid)
    if WINDOW > 0:
        oldest = newest + 1 - WINDOW
        first = tl.minimum(tl.maximum(tl.min(oldest, 0), 0) // BLOCK_SIZE, blocks)
    begin, end = _split_of(first, blocks, split, SPLITS)
    q_rows = sequence * HEADS + (kv_head * GROUP + member)
    peak, total = empty_softmax(slopes, member, valid, False, False, ROWS)
    peak, total, acc = _attend(
        q, q_rows, valid, cache, value_offset, tables + slot * table_stride, kv_head, begin, end, oldest, newest,
        blocks * BLOCK_SIZE, scale, slope, peak, total, CAP_RATE, WINDOW, ALIBI, KV_HEADS, DIM, BLOCK_SIZE, ROWS, WIDE,
    )  # fmt: skip
    _store_way(partial, q_rows, FIRST_WAY + split, peak, total, acc, valid, WAYS, DIM, WIDE)


@triton.jit
def _merge_kernel(
    partial, out,
    DIM: tl.constexpr, WIDE: tl.constexpr, WAYS: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    _start_after_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    way = tl.arange(0, PADDED)
    column = tl.arange(0, WIDE)
    base = partial + (row * WAYS + way) * (DIM + 2)
    peaks = tl.load(base + DIM, mask=way < WAYS, other=-1e30)
    totals = tl.load(base + DIM + 1, mask=way < WAYS, other=0.0)
    mask = (way < WAYS)[:, None] & (column < DIM)[None, :]
    sums = tl.load(base[:, None] + column[None, :], mask=mask, other=0.0)
    shrink = tl.exp2(peaks - tl.max(peaks, 0))
    result = tl.sum(sums * shrink[:, None], 0) / tl.sum(totals * shrink, 0)
    tl.store(out + row * DIM + column, result.to(out.dtype.element_ty), mask=column < DIM)


def num_splits(sequences: int, kv_heads: int, max_blocks: int) -> int:
    """How many programs share a sequence: enough to fill the GPU, each with blocks to do."""
    most = min(_PROGRAMS // max(1, sequences * kv_heads), max_blocks)
    return max((splits for splits in SPLITS if splits <= most), default=1)


def decode_attention_triton(
    q: Tensor, kv_cache: Tensor, context: DecodeContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """As decode_attention. block_size is 16 or more."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    shared, slots, tables = context.shared_blocks, context.slots, context.block_tables
    splits = num_splits(count, kv_heads, options.most_blocks(context.max_length, block_size))
    ways = splits + (0 if shared is None else _SHARED_SPLITS)
    partial = q.new_empty((count * heads, ways, dim + 2) if ways > 1 else (1,), dtype=torch.float32)
    group, wide = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    tile = 0 if shared is None else sequences_per_tile(heads, kv_heads)
    stages = 3 if q.element_size() == 2 else 1
    scalars = (options.log2_scale, tables.stride(0), kv_cache.stride(0))
    slopes = q if options.slopes is None else options.slopes
    constants = (options.cap_rate, options.window, options.slopes is not None, heads, kv_heads, dim, block_size, wide)
    if shared is not None:
        _shared_kernel[(triton.cdiv(count, tile), kv_heads, _SHARED_SPLITS)](
            q, kv_cache, tables, context.lengths, slots, slopes, shared, partial, *scalars, count,
            *constants, _SHARED_ROWS, _SHARED_SPLITS, splits, ways, tile,
            q.is_cuda, num_warps=8, num_stages=stages, launch_pdl=q.is_cuda,
        )  # fmt: skip
    _decode_kernel[(count, kv_heads, splits)](
        q, kv_cache, tables, context.lengths, slots, slopes, q if options.sinks is None else options.sinks,
        slots if shared is None else shared, out, partial, *scalars, options.sinks is not None, *constants,
        max(16, triton.next_power_of_2(group)), splits, ways, tile,
        q.is_cuda, num_warps=4, num_stages=stages, launch_pdl=q.is_cuda,
    )  # fmt: skip
    if ways > 1:
        _merge_kernel[(count * heads,)](
            partial, out, dim, wide, ways, triton.next_power_of_2(ways), q.is_cuda, num_warps=2, launch_pdl=q.is_cuda
        )
    return out


def decode_attention_torch(
    q: Tensor, kv_cache: Tensor, context: DecodeContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """As decode_attention. The query heads that share a kv head stand as several queries of one head, so nothing is
    expanded."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    count, heads, _ = q.shape
    rows, mask, positions = context.view(options)
    flat = kv_cache.view(2, -1, block_size * dim)
    keys, values = (half.index_select(0, rows).view(count, kv_heads, -1, dim) for half in flat)
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim)
    bias = None
    if options.slopes is not None:
        by_head = alibi_torch(positions[:, None, None, None, :], options.slopes.view(kv_heads, -1))
        bias = by_head[:, :, :, 0, :]
    sinks = None if options.sinks is None else options.sinks.view(kv_heads, -1, 1)
    return out.copy_(attend_torch(grouped, keys, values, mask, options, bias, sinks).reshape(count, heads, dim))


def decode_attention(
    q: Tensor, kv_cache: Tensor, context: DecodeContext, options: AttentionOptions, out: Tensor
) -> Tensor:
    """One query a sequence. q, out: [sequences, heads, head_dim], contiguous on the GPU; writes and returns `out`."""
    run = decode_attention_triton if q.is_cuda else decode_attention_torch
    return run(q, kv_cache, context, options, out)
