"""`headrace bench offline`: the engine alone, token ids in and out, one JSON line a workload."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.workloads import FLOOR_SECONDS, VLLM_SECONDS, WORKLOADS, Workload
from schemas.messages import SamplingParams
from workers.llm import LLM


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench offline", description=__doc__)
    made.add_argument("--model", default="demo", help="model folder, .gguf file, hub id or demo")
    made.add_argument("--load-format", choices=["auto", "dummy"], default="auto", help="dummy: random weights")
    made.add_argument("--implementation", choices=["auto", "native", "transformers"], default="auto")
    made.add_argument("--dtype", default="auto")
    made.add_argument("--device", default="auto")
    made.add_argument("--workload", default="latency-1", help=f"comma-separated, of: {', '.join(WORKLOADS)}")
    made.add_argument("--requests", type=int, help="a workload of your own: how many requests")
    made.add_argument("--prompt-tokens", type=int, default=128)
    made.add_argument("--output-tokens", type=int, default=128)
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument("--top-p", type=float, default=1.0)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--repeat", type=int, default=3, help="runs of which the median counts")
    made.add_argument("--max-running", type=int, default=512)
    made.add_argument("--max-batched-tokens", type=int, default=8192)
    made.add_argument("--max-model-len", type=int, default=8192)
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    started = time.perf_counter()
    llm = build(options)
    ready = time.perf_counter() - started
    for name, workload in _chosen(options).items():
        print(json.dumps(measure(llm, name, workload, options, ready)), flush=True)


def build(options: argparse.Namespace) -> LLM:
    return LLM(
        options.model,
        load_format=options.load_format,
        implementation=options.implementation,
        dtype=options.dtype,
        device=options.device,
        max_running=options.max_running,
        max_batched_tokens=options.max_batched_tokens,
        max_model_len=options.max_model_len,
    )


def _chosen(options: argparse.Namespace) -> dict[str, Workload]:
    if options.requests:
        return {"custom": Workload(options.requests, options.prompt_tokens, options.output_tokens)}
    names = options.workload.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise SystemExit(f"no workload {unknown[0]!r}; there are: {', '.join(WORKLOADS)}")
    return {name: WORKLOADS[name] for name in names}


def measure(llm: LLM, name: str, workload: Workload, options: argparse.Namespace, ready: float) -> dict[str, Any]:
    """Seconds (median and all runs), output tokens a second, and the ratios to what is known."""
    seconds = runs(llm, name, workload, options)
    median = statistics.median(seconds)
    key = (Path(options.model).name, name)
    vllm, floor = VLLM_SECONDS.get(key), FLOOR_SECONDS.get(key)
    return {
        "model": key[0],
        "workload": name,
        "seconds": round(median, 4),
        "runs": [round(each, 4) for each in seconds],
        "output_tok_s": round(workload.requests * workload.output_tokens / median, 1),
        "vs_vllm": None if vllm is None else round(median / vllm, 3),
        "vs_floor": None if floor is None else round(median / floor, 3),
        "ready_s": round(ready, 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def runs(llm: LLM, name: str, workload: Workload, options: argparse.Namespace) -> list[float]:
    """Seconds of each counted run. The first warms up and does not count; each has a seed of its own, so that none finds
    another's prefixes in the cache."""
    seconds = []
    for run in range(options.repeat + 1):
        prompts = workload.prompts(name, llm.ready.vocab_size, options.seed + 1000 * run)
        seconds.append(_run(llm, prompts, workload, options))
    return seconds[1:]


def _run(llm: LLM, prompts: list[list[int]], workload: Workload, options: argparse.Namespace) -> float:
    params = [
        SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed + index,
            max_tokens=workload.output_tokens,
            ignore_eos=True,
        )
        for index in range(len(prompts))
    ]
    started = time.perf_counter()
    results = llm.generate(prompts, params)
    elapsed = time.perf_counter() - started
    assert all(len(result.token_ids) == workload.output_tokens for result in results)
    return elapsed
