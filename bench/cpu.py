"""`headrace bench cpu`: transformers generate() and Headrace, in turn, in one process, on the same weights and dtype.

Two loads on the demo model: one stream of 128 tokens, and 64 requests whose output lengths spread log-uniformly over 16 to
256 tokens. The peer runs those in static batches of 16, each as long as its longest member; only the tokens that were asked
for count. The last line is one JSON object with the ratios, Headrace over the peer, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from schemas.messages import SamplingParams
from workers.llm import LLM
from workers.model.loaders.export import export_folder
from workers.model.loaders.resolve import resolve

PROMPT_TOKENS = 32
ONE_STREAM_TOKENS = 128
PEER_BATCH = 16


def main(arguments: list[str]) -> None:
    options = argparse.ArgumentParser(prog="headrace bench cpu", description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--requests", type=int, default=64)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    peer = load_peer(chosen.dtype)
    ours = LLM("demo", dtype=chosen.dtype, device="cpu", threads=chosen.threads)
    lengths = spread_lengths(chosen.requests)
    prompts = [prompt(index) for index in range(chosen.requests)]
    loads: dict[str, Callable[[], float]] = {
        "peer one stream": lambda: peer_rate(peer, prompts[:1], [ONE_STREAM_TOKENS]),
        "headrace one stream": lambda: our_rate(ours, prompts[:1], [ONE_STREAM_TOKENS]),
        "peer spread": lambda: peer_rate(peer, prompts, lengths),
        "headrace spread": lambda: our_rate(ours, prompts, lengths),
    }
    our_rate(ours, prompts[:2], [8, 8])
    peer_rate(peer, prompts[:2], [8, 8])
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(chosen.rounds):
        for name, load in loads.items():
            rates[name].append(load())
            line = f"round {number + 1} of {chosen.rounds}: {name:<20} {rates[name][-1]:8.1f} tok/s"
            print(line, file=sys.stderr, flush=True)
    print(json.dumps(summary(rates, chosen.dtype, chosen.threads)))


def summary(rates: dict[str, list[float]], dtype: str, threads: int) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "one_stream_ratio": round(median["headrace one stream"] / median["peer one stream"], 3),
        "spread_64_ratio": round(median["headrace spread"] / median["peer spread"], 3),
        **{name.replace(" ", "_") + "_tok_s": round(value, 1) for name, value in median.items()},
        "dtype": dtype,
        "threads": threads,
    }


def prompt(index: int) -> list[int]:
    draw = random.Random(f"prompt-{index}")
    return [draw.randrange(300, 40_000) for _ in range(PROMPT_TOKENS)]


def spread_lengths(count: int) -> list[int]:
    """Log-uniform over 16..256, the same each time."""
    draw = random.Random("lengths")
    return [round(math.exp(draw.uniform(math.log(16), math.log(256)))) for _ in range(count)]


def load_peer(dtype: str) -> Any:
    """transformers' model on the demo weights, by way of a HuggingFace folder."""
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        export_folder(resolve("demo"), Path(folder), kind)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()


def peer_rate(model: Any, prompts: list[list[int]], lengths: list[int]) -> float:
    """Useful tokens a second in static batches."""
    started = time.perf_counter()
    for first in range(0, len(prompts), PEER_BATCH):
        batch = torch.tensor(prompts[first : first + PEER_BATCH])
        longest = max(lengths[first : first + PEER_BATCH])
        with torch.inference_mode():
            out = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=False,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        assert out.shape[1] == batch.shape[1] + longest
    return sum(lengths) / (time.perf_counter() - started)


def our_rate(llm: LLM, prompts: list[list[int]], lengths: list[int]) -> float:
    """Useful tokens a second under continuous batching."""
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    started = time.perf_counter()
    results = llm.generate(prompts, params)
    elapsed = time.perf_counter() - started
    assert [len(result.token_ids) for result in results] == lengths
    return sum(lengths) / elapsed
