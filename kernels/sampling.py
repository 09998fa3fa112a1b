"""From logits to token ids, batched, with counter-based noise.

The draw at a position is a pure function of (seed, position): one uniform number from Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") picks the token where the cumulative distribution passes it. A job that is run
again, elsewhere and in another batch, therefore draws the same tokens from the same distributions.

On the GPU nothing is sorted. The smallest logit that top-k or top-p keeps is found bit by bit: floats order as integers do,
and each pass over the logits tells, for every value of the next few bits, how many tokens (or how much probability) lie at or
above it. A row is cut in chunks of fixed size, so that its sums never depend on the batch around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.argmax import CHUNK, argmax_torch, max_triton

_MASK = 0xFFFFFFFF
_FIRST_SORTED = 1024
_FEW_ROWS = 16
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""High bits of a float32 that tell all values of a dtype apart."""

TEMPERATURE, TOP_P, MIN_P = 0, 1, 2
TOP_K, SEED = 0, 1


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The settings of the rows of a batch, kept by slot.

    slots: [rows] int64. floats: [slots, >= 3] fp32, columns TEMPERATURE (0 is greedy), TOP_P, MIN_P. integers: [slots, >= 2]
    int64, columns TOP_K (0 or less is off), SEED. positions: [rows] int64, what each draw is counted by. any_top_k,
    any_top_p: whether some row asks for it.
    """

    slots: Tensor
    floats: Tensor
    integers: Tensor
    positions: Tensor
    any_top_k: bool
    any_top_p: bool


@triton.jit
def _ordered(values):
    """float32 as int32 of the same order."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _inverse_temperature(floats, slot, columns):
    """In units of log2: exp2 of a difference times this is a probability up to a factor. 1 for greedy rows."""
    temperature = tl.load(floats + slot * columns)
    return 1.4426950408889634 / tl.where(temperature > 0, temperature, 1.0)


@triton.jit
def _count_kernel(
    logits, slots, floats, peaks, floors, lows, sums, vocab, chunks, float_columns, step, shift,
    WAYS: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr, HAS_FLOOR: tl.constexpr, FIRST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """How many tokens of a chunk (or how much mass) lie at or above each value of the digit that begins at bit `shift`.
    sums: [steps, rows, chunks, WAYS] fp32. Keys below `floors` do not count."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * vocab + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
    key = _ordered(values)
    if COUNT:
        mass = tl.where(column < vocab, 1.0, 0.0)
    else:
        scale = _inverse_temperature(floats, tl.load(slots + row), float_columns)
        mass = tl.exp2((values - tl.load(peaks + row)) * scale)
    if HAS_FLOOR:
        mass = tl.where(key >= tl.load(floors + row), mass, 0.0)
    low = tl.full((), 0, tl.int32)
    if not FIRST:
        low = tl.load(lows + row)
    target = sums + ((step * tl.num_programs(0) + row) * chunks + chunk) * WAYS
    for way in tl.static_range(WAYS):
        digit = (way - WAYS // 2) if FIRST else way  # the first digit has the sign
        tl.store(target + way, tl.sum(tl.where(key >= low + (digit << shift), mass, 0.0), 0))


@triton.jit
def _settle_kernel(
    slots, floats, integers, lows, sums, chunks, float_columns, integer_columns, step, shift,
    WAYS: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The highest value of the digit at or above which lies all that is to be kept; lows: [rows] int32, the digits so
    far. Column 0 of the first step's sums is everything."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    chunk = tl.arange(0, WIDTH)[:, None]
    way = tl.arange(0, WAYS)
    source = sums + (step * tl.num_programs(0) + row) * chunks * WAYS
    reach = tl.sum(tl.load(source + chunk * WAYS + way[None, :], mask=chunk < chunks, other=0.0), 0)
    if COUNT:
        goal = tl.load(integers + slot * integer_columns).to(tl.float32)
        off = goal <= 0
    else:
        share = tl.load(floats + slot * float_columns + 1)
        everything = tl.load(sums + row * chunks * WAYS + chunk * WAYS, mask=chunk < chunks, other=0.0)
        goal = share * tl.sum(tl.sum(everything, 1), 0)
        off = share >= 1
    digit = tl.where(off, 0, tl.max(tl.where(reach >= goal, way, 0), 0))
    if FIRST:
        tl.store(lows + row, (digit - WAYS // 2) << shift)
    else:
        tl.store(lows + row, tl.load(lows + row) + (digit << shift))


@triton.jit
def _kept_mass(logits, row, chunk, slot, peak, scale, floats, float_columns, k_floors, p_floors, vocab,
               HAS_K: tl.constexpr, HAS_P: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Probabilities, up to a factor, of a chunk of a row; 0 outside what is kept."""
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * vocab + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
    mass = tl.exp2((values - peak) * scale)
    min_p = tl.load(floats + slot * float_columns + 2)
    mass = tl.where(mass >= min_p, mass, 0.0)
    key = _ordered(values)
    if HAS_K:
        mass = tl.where(key >= tl.load(k_floors + row), mass, 0.0)
    if HAS_P:
        mass = tl.where(key >= tl.load(p_floors + row), mass, 0.0)
    return mass


@triton.jit
def _mass_kernel(
    logits, slots, floats, peaks, k_floors, p_floors, masses, vocab, chunks, float_columns,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    scale = _inverse_temperature(floats, slot, float_columns)
    mass = _kept_mass(logits, row, chunk, slot, tl.load(peaks + row), scale, floats, float_columns, k_floors, p_floors, vocab,
                      HAS_K, HAS_P, CHUNK)  # fmt: skip
    tl.store(masses + row * chunks + chunk, tl.sum(mass, 0))


@triton.jit
def _uniform(seed, position):
    """As philox_uniform."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    bits, _, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return ((bits >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-8


@triton.jit
def _pick_kernel(
    logits, slots, floats, integers, positions, peaks, k_floors, p_floors, masses, out,
    vocab, chunks, float_columns, integer_columns,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The chunk where the cumulative mass passes the draw, then the token; greedy rows keep what `out` holds."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if tl.load(floats + slot * float_columns) > 0:
        all_chunks = tl.arange(0, WIDTH)
        inside = all_chunks < chunks
        weights = tl.load(masses + row * chunks + all_chunks, mask=inside, other=0.0)
        uniform = _uniform(tl.load(integers + slot * integer_columns + 1), tl.load(positions + row))
        target = uniform * tl.sum(weights, 0)
        ends = tl.cumsum(weights, 0)
        # the last chunk that holds anything, where rounding leaves none
        last = tl.max(tl.where(weights > 0, all_chunks, 0), 0)
        chosen = tl.minimum(tl.sum(tl.where(inside & (ends <= target), 1, 0), 0), last)
        target -= tl.sum(tl.where(all_chunks < chosen, weights, 0.0), 0)
        scale = _inverse_temperature(floats, slot, float_columns)
        mass = _kept_mass(logits, row, chosen, slot, tl.load(peaks + row), scale, floats, float_columns, k_floors,
                          p_floors, vocab, HAS_K, HAS_P, CHUNK)  # fmt: skip
        index = tl.arange(0, CHUNK)
        passed = tl.sum(tl.where(tl.cumsum(mass, 0) <= target, 1, 0), 0)
        passed = tl.minimum(passed, tl.max(tl.where(mass > 0, index, 0), 0))
        # a token without mass is never drawn, whatever the sums rounded to
        token = tl.min(tl.where((index >= passed) & (mass > 0), index, CHUNK), 0)
        tl.store(out + row, tl.minimum(chosen * CHUNK + token, vocab - 1).to(tl.int64))


def _floors(logits: Tensor, rows: SamplingRows, peaks: Tensor, floors: Tensor | None, count: bool) -> Tensor:
    """[rows] int32: the key of the smallest logit that top-k (`count`) or top-p keeps among those at or above `floors`."""
    number, vocab = logits.shape
    chunks, pdl = triton.cdiv(vocab, CHUNK), logits.is_cuda
    bits = 4 if number <= _FEW_ROWS else 2
    steps = _KEY_BITS[logits.dtype] // bits
    lows = torch.empty(number, dtype=torch.int32, device=logits.device)
    sums = torch.empty(steps, number, chunks, 1 << bits, dtype=torch.float32, device=logits.device)
    float_columns, integer_columns = rows.floats.shape[1], rows.integers.shape[1]
    for step in range(steps):
        shift = 32 - bits * (step + 1)
        _count_kernel[(number, chunks)](
            logits, rows.slots, rows.floats, peaks, lows if floors is None else floors, lows, sums, vocab, chunks,
            float_columns, step, shift, 1 << bits, CHUNK, count, floors is not None, step == 0, pdl,
            num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
        _settle_kernel[(number,)](
            rows.slots, rows.floats, rows.integers, lows, sums, chunks, float_columns, integer_columns, step, shift,
            1 << bits, triton.next_power_of_2(chunks), count, step == 0, pdl, num_warps=1, launch_pdl=pdl,
        )  # fmt: skip
    return lows


def sample_triton(logits: Tensor, rows: SamplingRows) -> Tensor:
    """As sample; rows are contiguous."""
    number, vocab = logits.shape
    chunks, pdl = triton.cdiv(vocab, CHUNK), logits.is_cuda
    peaks, out = max_triton(logits)
    k_floors = _floors(logits, rows, peaks, None, True) if rows.any_top_k else None
    p_floors = _floors(logits, rows, peaks, k_floors, False) if rows.any_top_p else None
    masses = torch.empty(number, chunks, dtype=torch.float32, device=logits.device)
    cuts = (k_floors is not None, p_floors is not None)
    k_floors, p_floors = (out if floors is None else floors for floors in (k_floors, p_floors))
    _mass_kernel[(number, chunks)](
        logits, rows.slots, rows.floats, peaks, k_floors, p_floors, masses, vocab, chunks, rows.floats.shape[1],
        *cuts, CHUNK, pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    _pick_kernel[(number,)](
        logits, rows.slots, rows.floats, rows.integers, rows.positions, peaks, k_floors, p_floors, masses, out,
        vocab, chunks, rows.floats.shape[1], rows.integers.shape[1],
        *cuts, triton.next_power_of_2(chunks), CHUNK, pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return out


def philox_uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """Uniform fp32 numbers in (0, 1) for int64 seeds and counters of any one shape, 24 random bits each."""
    c0, c1 = counter & _MASK, (counter >> 32) & _MASK
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return ((c0 >> 8).float() + 0.5) * 2.0**-24


def apply_penalties(
    logits: Tensor, counts: Tensor, in_prompt: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Penalise seen tokens. logits: [rows, vocab] fp32; counts: [rows, vocab] int32 of the output; in_prompt: bool;
    the penalties: [rows]. Repetition divides positive and multiplies negative logits of prompt and output tokens
    (Keskar et al. 2019, arXiv:1909.05858); frequency and presence subtract by the output alone, as OpenAI documents."""
    seen = (counts > 0) | in_prompt
    factor = torch.where(seen, repetition[:, None], 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - frequency[:, None] * counts - presence[:, None] * (counts > 0)


def truncate(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Set the logits outside top-k, top-p (the nucleus of Holtzman et al. 2019) and min-p to -inf.

    logits: [rows, vocab] fp32 after temperature. top_k: [rows] int64, 0 or less is off; top_p, min_p: [rows] fp32. Ties
    at a boundary stay in.
    """
    vocab = logits.shape[-1]
    peak = logits.max(-1, keepdim=True).values
    floor = torch.where(min_p > 0, peak[:, 0] + min_p.log(), -torch.inf)
    total = (logits - peak).exp().sum(-1, keepdim=True)
    limit = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)[:, None]
    for width in dict.fromkeys((min(_FIRST_SORTED, vocab), vocab)):
        ordered = logits.topk(width, dim=-1).values
        inside_k = torch.arange(width, device=logits.device) < limit
        mass = torch.where(inside_k, (ordered - peak).exp(), 0.0)
        # top-p is measured on what top-k leaves
        kept_mass = torch.where(limit[:, 0] >= vocab, total[:, 0], mass.sum(-1))
        before = mass.cumsum(-1) - mass
        kept = inside_k & (before < (top_p * kept_mass)[:, None])
        settled = (~kept[:, -1]) | (top_p >= 1.0) & (limit[:, 0] >= vocab)
        if width == vocab or bool(settled.all()):
            break
    last = ordered.gather(-1, (kept.sum(-1, keepdim=True) - 1).clamp(min=0))[:, 0]
    nothing_cut = (top_p >= 1.0) & (limit[:, 0] >= vocab)
    threshold = torch.maximum(floor, torch.where(nothing_cut, -torch.inf, last))
    return logits.masked_fill(logits < threshold[:, None], -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample each row of fp32 logits [rows, vocab] with its uniform number [rows]; returns ids [rows] int64."""
    cumulative = logits.softmax(-1).cumsum(-1)
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def sample_torch(logits: Tensor, rows: SamplingRows) -> Tensor:
    """As sample."""
    floats, integers = rows.floats[rows.slots], rows.integers[rows.slots]
    temperature = floats[:, TEMPERATURE]
    scaled = logits.float() / torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)
    if rows.any_top_k or rows.any_top_p or (floats[:, MIN_P] > 0).any():
        scaled = truncate(scaled, integers[:, TOP_K], floats[:, TOP_P], floats[:, MIN_P])
    drawn = draw(scaled, philox_uniform(integers[:, SEED], rows.positions))
    return torch.where(temperature > 0, drawn, argmax_torch(logits))


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Draws a token for each row of logits [rows, vocab]; returns [rows] int64. Top-k first, then top-p of what it leaves;
    ties at a boundary stay in."""
    return sample_triton(logits, rows) if logits.is_cuda else sample_torch(logits, rows)
