"""`headrace bench`."""

from __future__ import annotations

import sys

USAGE = """usage: headrace bench cpu | offline | http | overhead [--help]

  cpu       the demo model on this CPU: transformers generate() and Headrace side by side, in one run
  offline   the engine alone on a workload of fixed shape: one JSON line a workload
  http      a load on any OpenAI-compatible server: rates, latencies, goodput
  overhead  what HTTP, queue and worker add to an engine that is called in process
"""


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["cpu"]:
        from bench.cpu import main as cpu

        cpu(arguments[1:])
    elif arguments[:1] == ["offline"]:
        from bench.offline import main as offline

        offline(arguments[1:])
    elif arguments[:1] == ["http"]:
        from bench.http import main as http

        http(arguments[1:])
    elif arguments[:1] == ["overhead"]:
        from bench.overhead import main as overhead

        overhead(arguments[1:])
    else:
        print(USAGE, end="")
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
