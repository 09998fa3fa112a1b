"""`headrace bench`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "cpu": "the demo model on this CPU: transformers generate() and Headrace side by side, in one run",
    "offline": "the engine alone on a workload of fixed shape: one JSON line a workload",
    "sweep": "the engine's tokens a second at growing batch sizes, beside the floor",
    "kernels": "each kernel's rate on the GPU beside the ceiling of the same run",
    "generate": "transformers generate() and Headrace on one GPU, requests of mixed lengths",
    "http": "a load on any OpenAI-compatible server: rates, latencies, goodput",
    "chaos": "jobs through all doors while everything is killed in turn; then the books are compared",
    "overload": "several times what can be served: what is refused, kept and lost, and the memory of each process",
    "batch": "a batch of many lines: how fast, and the memory of each process meanwhile",
    "interference": "a backlog of batch work beside interactive requests: what they notice, and what it gets",
    "models": "each architecture of transformers, small and random, against transformers' own code",
    "structured": "outputs that follow JSON Schemas: whether they are right, and what the masks cost",
    "overhead": "what HTTP, queue and worker add to an engine that is called in process",
}


def usage() -> str:
    lines = [f"  {name:<13}{text}" for name, text in COMMANDS.items()]
    return "\n".join((f"usage: headrace bench {' | '.join(COMMANDS)} [--help]", "", *lines, ""))


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] in COMMANDS:
        import_module(f"bench.{arguments[0]}").main(arguments[1:])
    else:
        print(usage(), end="")
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
