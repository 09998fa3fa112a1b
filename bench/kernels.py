"""`headrace bench kernels`: what each kernel reaches on this GPU at a model's shapes, beside the ceilings of the same run.

One JSON line a kernel and size. A kernel bound by memory is rated by the bytes that it must read and write once over its
time, and compared with a device-to-device copy (bytes read and written); one bound by arithmetic by its floating-point
operations, compared with a large product of random matrices. Times are of CUDA graphs of 20 calls in a row, so a call's start
overlaps the end of the one before, as in a decode step, and small operands are found in L2, as there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernels_moe import moe_cases
from kernels.activation import silu_mul
from kernels.argmax import argmax
from kernels.attention import AttentionOptions
from kernels.decode_attention import DecodeContext, decode_attention, sequences_per_tile
from kernels.matvec import matvec_triton
from kernels.norm import add_rms_norm
from kernels.prefill_attention import PrefillContext, Span, plan_tiles, prefill_attention
from kernels.rope import CacheSlots, Rotation, rope_and_cache
from kernels.sampling import SamplingRows, sample
from workers.model.config import AttentionConfig, DecoderConfig
from workers.model.families.registry import decoder_config
from workers.model.loaders.config import read_config
from workers.model.loaders.resolve import resolve

CALLS, ROUNDS = 20, 5
BLOCK_SIZE = 64
DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Case:
    """`work` is bytes where `bound` is "memory", floating-point operations where it is "arithmetic"."""

    name: str
    size: str
    bound: str
    work: float
    run: Callable[[], object]


def main(arguments: list[str]) -> None:
    options = argparse.ArgumentParser(prog="headrace bench kernels", description=__doc__)
    options.add_argument("--model", required=True, help="model folder; only its config is read")
    options.add_argument("--only", default="", help="kernels whose names contain this")
    chosen = options.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("headrace bench kernels needs a CUDA device; there is none")
    config = decoder_config(read_config(resolve(chosen.model)))
    ceilings = {"memory": copy_rate(), "arithmetic": product_rate()}
    print(json.dumps({"device": torch.cuda.get_device_name(), **{k: round(v / 1e9) for k, v in ceilings.items()}}))
    with torch.inference_mode():
        for case in cases(config):
            if chosen.only in case.name:
                print(json.dumps(report(case, ceilings[case.bound])), flush=True)


def report(case: Case, ceiling: float) -> dict[str, object]:
    """GB/s or TFLOP/s, and the share of the ceiling."""
    seconds = device_seconds(case.run)
    rate = case.work / seconds
    unit, scale = ("GB/s", 1e9) if case.bound == "memory" else ("TFLOP/s", 1e12)
    return {
        "kernel": case.name,
        "size": case.size,
        "us": round(seconds * 1e6, 2),
        unit: round(rate / scale, 1),
        "of_ceiling": round(rate / ceiling, 3),
    }


def device_seconds(run: Callable[[], object]) -> float:
    """Of one call, on the device: the best of a few rounds."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / CALLS / 1e3)
    return min(times)


def copy_rate() -> float:
    """Bytes a second, read and written, of a kernel that copies: a graph's memory-copy node is slower than kernels are."""
    source = torch.zeros(1 << 29, dtype=DTYPE, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: torch.mul(source, 1, out=target))


def product_rate() -> float:
    """Floating-point operations a second of a product of random matrices."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda").to(DTYPE) for _ in range(2))
    return 2 * size**3 / device_seconds(lambda: left @ right)


def cases(config: DecoderConfig) -> Iterator[Case]:
    """Every kernel at the sizes of one stream, of a decode batch and of a prefill step."""
    for rows in (1, 256, 8192):
        yield from _elementwise(config, rows)
    yield from _matvecs(config)
    for sequences, context in ((1, 512), (1, 8192), (256, 512), (64, 4096)):
        yield _decode(config, sequences, context, 0)
    yield _decode(config, 256, 2048, 1920)
    for sequences, context in ((16, 512), (2, 4096), (1, 8192)):
        yield _prefill(config, sequences, context)
    for rows in (1, 256):
        yield from _sampling(config, rows)
    yield from moe_cases(config, DTYPE, Case)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(DTYPE)


def _elementwise(config: DecoderConfig, rows: int) -> Iterator[Case]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    x, residual, weight = _random(rows, hidden), _random(rows, hidden), _random(hidden)
    size = f"{rows} rows"
    yield Case("add_rms_norm", size, "memory", 4 * x.nbytes, lambda: add_rms_norm(x, residual, weight, 1e-5))
    gate_up = _random(rows, 2 * inner)
    yield Case("silu_mul", size, "memory", 1.5 * gate_up.nbytes, lambda: silu_mul(gate_up))
    blocks = -(-rows // BLOCK_SIZE)
    cache = _random(2, blocks, config.num_kv_heads, BLOCK_SIZE, dim)
    qkv = _random(rows, (config.num_heads + 2 * config.num_kv_heads) * dim)
    positions = torch.arange(rows, device="cuda")
    slots = CacheSlots(positions, blocks, config.num_kv_heads, BLOCK_SIZE)
    angles = torch.rand(rows, dim // 2, device="cuda")
    rotation = Rotation(angles.cos(), angles.sin(), positions)
    has_norms = isinstance(config.attention, AttentionConfig) and config.attention.qk_norm is not None
    norms = [_random(dim), _random(dim)] if has_norms else [None, None]
    yield Case(
        "rope_and_cache", size, "memory", 2 * qkv.nbytes,
        lambda: rope_and_cache(qkv, rotation, cache, slots, config.num_heads, *norms),
    )  # fmt: skip


def _matvecs(config: DecoderConfig) -> Iterator[Case]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size = config.num_heads * dim
    shapes = {
        "qkv": (q_size + 2 * config.num_kv_heads * dim, hidden, False),
        "output": (hidden, q_size, False),
        "gate_up": (2 * inner, hidden, True),
        "down": (hidden, inner, False),
        "head": (config.vocab_size, hidden, False),
    }
    for name, (outputs, inputs, gated) in shapes.items():
        # several weights in turn, more than L2 holds
        weights = [_random(outputs, inputs) for _ in range(-(-(256 << 20) // (2 * outputs * inputs)))]
        turn = iter(range(1 << 62))
        x = _random(1, inputs)

        def run(
            weights: list[Tensor] = weights, turn: Iterator[int] = turn, x: Tensor = x, gated: bool = gated
        ) -> Tensor:
            return matvec_triton(x, weights[next(turn) % len(weights)], gated=gated)

        yield Case("matvec", name, "memory", weights[0].nbytes, run)


def _paged(config: DecoderConfig, sequences: int, context: int, shared: int) -> tuple[Tensor, Tensor]:
    """A cache, and block tables whose first `shared` tokens are the same blocks for all."""
    own, common = (context - shared) // BLOCK_SIZE, shared // BLOCK_SIZE
    total = common + sequences * own
    cache = _random(2, total, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    tables = common + torch.randperm(sequences * own, device="cuda").view(sequences, own)
    head = torch.arange(common, device="cuda").expand(sequences, common)
    return cache, torch.cat((head, tables), 1).int().contiguous()


def _decode(config: DecoderConfig, sequences: int, context: int, shared: int) -> Case:
    cache, tables = _paged(config, sequences, context, shared)
    slots = torch.arange(sequences, device="cuda")
    lengths = torch.full((sequences,), context, device="cuda")
    tiles = -(-sequences // sequences_per_tile(config.num_heads, config.num_kv_heads))
    hint = torch.full((tiles,), shared // BLOCK_SIZE, dtype=torch.int32, device="cuda") if shared else None
    where = DecodeContext(slots, tables, lengths, context, config.num_kv_heads, BLOCK_SIZE, hint)
    q = _random(sequences, config.num_heads, config.head_dim)
    out, options = torch.empty_like(q), AttentionOptions(config.head_dim**-0.5)
    size = f"{sequences} sequences of {context}" + (f", {shared} shared" if shared else "")
    return Case(
        "decode_attention", size, "memory", cache.nbytes, lambda: decode_attention(q, cache, where, options, out)
    )


def _prefill(config: DecoderConfig, sequences: int, context: int) -> Case:
    cache, tables = _paged(config, sequences, context, 0)
    spans = [Span(index, index * context, context, context) for index in range(sequences)]
    where = PrefillContext(spans, tables, torch.from_numpy(plan_tiles(spans)).cuda())
    q = _random(sequences * context, config.num_heads, config.head_dim)
    out, options = torch.empty_like(q), AttentionOptions(config.head_dim**-0.5)
    operations = 2 * sequences * config.num_heads * config.head_dim * context**2  # the causal half of two products
    size = f"{sequences} sequences of {context}"
    return Case(
        "prefill_attention", size, "arithmetic", operations, lambda: prefill_attention(q, cache, where, options, out)
    )


def _sampling(config: DecoderConfig, rows: int) -> Iterator[Case]:
    logits = _random(rows, config.vocab_size)
    yield Case("argmax", f"{rows} rows", "memory", logits.nbytes, lambda: argmax(logits))
    slots = torch.arange(rows, device="cuda")
    floats = torch.tensor([0.8, 0.95, 0.0], device="cuda").repeat(rows, 1)
    integers = torch.stack((torch.full_like(slots, 50), slots), 1)
    for name, top_k, top_p in (("plain", False, False), ("top-p", False, True), ("top-k and top-p", True, True)):
        settings = SamplingRows(slots, floats, integers, slots, top_k, top_p)

        def run(settings: SamplingRows = settings) -> Tensor:
            return sample(logits, settings)

        yield Case("sample", f"{rows} rows, {name}", "memory", logits.nbytes, run)
