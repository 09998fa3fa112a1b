"""`headrace worker`: one worker, its front in this process and its engine in a child."""

from __future__ import annotations

import sys

import uvloop

from cli.parts import amqp_broker, connected, make_worker, run_worker, stop_signal, until
from cli.settings import WorkerCommandSettings


def run(settings: WorkerCommandSettings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    uvloop.run(_run(settings))


async def _run(settings: WorkerCommandSettings) -> None:
    stop = stop_signal()
    async with connected(amqp_broker(settings, "headrace-worker")) as broker:
        print(f"loading {settings.model} ...", file=sys.stderr, flush=True)
        worker = await make_worker(broker, settings)
        print(f"ready: {settings.model_name}", file=sys.stderr, flush=True)
        await until(stop, run_worker(worker, stop, settings.drain_seconds))
