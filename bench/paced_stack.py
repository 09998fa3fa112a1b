"""The shipped commands around an engine without a model: what the benches of the service, not of the engine, start."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from bench.paced_engine import run_paced_engine
from bench.stack import StackSettings
from workers.front.engine_client import ProcessEngine

MIB = 1 << 20


def add_stack_arguments(made: argparse.ArgumentParser, *, step_ms: float, max_running: int) -> None:
    """What `paced_stack` reads; the numbers are the defaults."""
    made.add_argument("--step-ms", type=float, default=step_ms, help="what a step of the engine takes")
    made.add_argument("--max-running", type=int, default=max_running, help="requests that the engine runs at once")
    made.add_argument(
        "--model", default="demo", help="whose tokenizer the service has: folder, .gguf file, hub id or demo"
    )
    made.add_argument("--amqp-url", default="", help="RabbitMQ; without it the embedded broker")
    made.add_argument("--database-url", default="", help="a database to use; without it a temporary SQLite file")


def paced_stack(options: argparse.Namespace, **settings: Any) -> StackSettings:
    return StackSettings(
        model=options.model,
        amqp_url=options.amqp_url,
        database_url=options.database_url,
        max_running=options.max_running,
        new_engine=partial(ProcessEngine, target=partial(run_paced_engine, options.step_ms / 1000)),
        **settings,
    )
