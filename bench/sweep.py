"""`headrace bench sweep`: output tokens a second at growing batch sizes, beside the floor: one JSON line a size.

The floor of a decode step is its bytes over the bandwidth of a device-to-device copy, or its products over the rate of a
large product, whichever is longer, plus the bytes of its cache. `--plot FILE` draws the lines of an earlier run, given on
standard input; it needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.offline import build, parser, runs
from bench.workloads import Workload
from workers.engine.engine import Engine
from workers.model.interface import ModelSizes

SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
BYTES_A_SECOND, OPERATIONS_A_SECOND = 4.3e12, 780e12
"""Of an H200; docs/performance.md says how they were measured."""


def main(arguments: list[str]) -> None:
    made = parser()
    made.prog, made.description = "headrace bench sweep", __doc__
    made.add_argument("--plot", type=Path, help="draw the lines read from standard input as this file")
    made.set_defaults(prompt_tokens=128, output_tokens=128, repeat=1)
    options = made.parse_args(arguments)
    if options.plot:
        plot([json.loads(line) for line in sys.stdin if line.startswith("{")], options.plot)
        return
    sweep(options)


def sweep(options: argparse.Namespace) -> None:
    llm = build(options)
    assert isinstance(llm.engine, Engine)
    config = llm.engine.runner.model.config
    for size in (size for size in SIZES if size <= options.max_running):
        workload = Workload(size, options.prompt_tokens, options.output_tokens)
        seconds = statistics.median(runs(llm, f"sweep-{size}", workload, options))
        tokens = size * options.output_tokens
        line = {
            "model": Path(options.model).name,
            "batch": size,
            "seconds": round(seconds, 4),
            "output_tok_s": round(tokens / seconds, 1),
            "floor_tok_s": round(tokens / floor_seconds(config, workload), 1),
        }
        print(json.dumps(line), flush=True)


def floor_seconds(config: ModelSizes, workload: Workload) -> float:
    """Prefill and every decode step of a workload whose requests run side by side, 16-bit weights."""
    dim, hidden = config.head_dim, config.hidden_size
    heads = config.num_heads + 2 * config.num_kv_heads
    layer = hidden * (heads * dim + config.num_heads * dim + 3 * config.intermediate_size)
    head = config.vocab_size * hidden
    weights = config.num_layers * layer + head
    cache_bytes = config.num_layers * 2 * config.num_kv_heads * dim * 2
    rows = workload.requests

    def step(context: int) -> float:
        products = max(2 * weights / BYTES_A_SECOND, 2 * rows * weights / OPERATIONS_A_SECOND)
        return products + rows * context * cache_bytes / BYTES_A_SECOND

    prompt = 2 * rows * workload.prompt_tokens * config.num_layers * layer + 2 * rows * head
    prefill = max(prompt / OPERATIONS_A_SECOND, 2 * weights / BYTES_A_SECOND)
    return prefill + sum(step(workload.prompt_tokens + index) for index in range(1, workload.output_tokens))


def plot(lines: list[dict[str, Any]], target: Path) -> None:
    """Tokens a second against the batch size, a colour a model, floors dashed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, model in enumerate(dict.fromkeys(line["model"] for line in lines)):
        mine = [line for line in lines if line["model"] == model]
        sizes = [line["batch"] for line in mine]
        colour = f"C{index}"
        axes.plot(sizes, [line["output_tok_s"] for line in mine], "o-", color=colour, label=model)
        axes.plot(sizes, [line["floor_tok_s"] for line in mine], "--", color=colour, label=f"{model}, floor")
    axes.set(xscale="log", yscale="log", xlabel="requests side by side", ylabel="output tokens a second")
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target)
