"""`headrace bench overhead`: what the service adds to its engine. The same requests go to an engine called in process and
to one behind HTTP, queue and worker; one JSON line with both and their differences in milliseconds, and the CPU time that
each process of the service spent per output token.

By default the engine has no model and its steps take a fixed time, so that nothing else moves the figures; with
--engine demo it is the demo model. With --amqp-url worker, api and jobs are processes of their own on that broker (give it a
virtual host without other users), without one the embedded broker joins them in one process.

With a concurrency above 1 an engine called in process takes up new requests exactly between two steps, while those over
HTTP come when they come and wait for the step that runs: half of a step on average, which the difference includes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, Protocol

from bench.http import measures
from bench.load import Load, Samples, run_load, to_stderr
from bench.stack import Stack, StackSettings, running
from cli.settings import served_name
from schemas.messages import SamplingParams
from workers.engine.config import EngineConfig
from workers.front.engine_client import ProcessEngine
from workers.protocol import AddRequest, TokenOutput

VOCAB_SIZE = 32_000
"""Of the prompts: below that of every model whose tokenizer is used here."""
WARM_UP = 16


class InProcessEngine(Protocol):
    @property
    def has_work(self) -> bool: ...
    def add(self, request: AddRequest, /) -> None: ...
    def step(self) -> list[TokenOutput]: ...


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench overhead", description=__doc__)
    made.add_argument("--engine", choices=["paced", "demo"], default="paced")
    made.add_argument("--step-ms", type=float, default=5.0, help="what a step of the paced engine takes")
    made.add_argument("--requests", type=int, default=100)
    made.add_argument("--concurrency", type=int, default=1)
    made.add_argument("--prompt-tokens", type=int, default=512)
    made.add_argument("--output-tokens", type=int, default=64)
    made.add_argument(
        "--model", default="demo", help="tokenizer, and weights of --engine demo: folder, .gguf file, hub id"
    )
    made.add_argument("--amqp-url", default="", help="RabbitMQ; without it the embedded broker")
    made.add_argument("--database-url", default="", help="a database to use; without it a temporary SQLite file")
    made.add_argument("--api-processes", type=int, default=1, help="with --amqp-url")
    made.add_argument("--client-processes", type=int, default=1)
    made.add_argument("--threads", type=int, help="CPU threads of the demo engine")
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    to_stderr("in process ...")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        alone = pool.submit(in_process, options).result()
    to_stderr("through the service ...")
    with running(_stack(options)) as stack:
        through, cpu = through_service(options, stack)
    print(json.dumps(report(options, alone, through, cpu)), flush=True)


def in_process(options: argparse.Namespace) -> Samples:
    """Keep `concurrency` requests in an engine of this process until all have ended; the first ones warm it up."""
    engine = _engine(options)
    warm_up = min(WARM_UP, options.requests)
    _closed_loop(engine, options, range(warm_up))
    # other prompts, or their prefixes would be in the engine's cache
    return _closed_loop(engine, options, range(warm_up, warm_up + options.requests))


def _engine(options: argparse.Namespace) -> InProcessEngine:
    if options.engine == "paced":
        from bench.paced_engine import PacedEngine

        return PacedEngine(options.step_ms / 1000)
    from workers.engine.build import build_engine

    return build_engine(EngineConfig(model=options.model, threads=options.threads)).engine


def _closed_loop(engine: InProcessEngine, options: argparse.Namespace, numbers: range) -> Samples:
    samples, waiting = Samples(started=time.time()), deque(numbers)
    times: dict[str, list[float]] = {}

    def add() -> None:
        number = waiting.popleft()
        request = _request(number, options)
        times[request.id] = [time.perf_counter()]
        engine.add(request)

    for _ in range(min(options.concurrency, len(numbers))):
        add()
    while engine.has_work:
        for output in engine.step():
            arrivals = times[output.id]
            arrivals += [time.perf_counter()] * bool(output.token_ids)
            if output.finish_reason is not None:
                _keep(samples, arrivals, options.output_tokens)
                if waiting:
                    add()
    samples.ended = time.time()
    return samples


def _request(number: int, options: argparse.Namespace) -> AddRequest:
    prompt = [300 + (number * 7919 + position * 31) % (VOCAB_SIZE - 300) for position in range(options.prompt_tokens)]
    sampling = SamplingParams(temperature=0.0, max_tokens=options.output_tokens, ignore_eos=True, seed=0)
    return AddRequest(f"alone-{time.monotonic_ns()}", prompt, sampling)


def _keep(samples: Samples, arrivals: list[float], tokens: int) -> None:
    sent, first, last = arrivals[0], arrivals[1], arrivals[-1]
    samples.ttft.append(first - sent)
    samples.tpot.append((last - first) / max(1, tokens - 1))
    samples.gaps += [later - earlier for earlier, later in pairwise(arrivals[1:])]
    samples.e2e.append(last - sent)
    samples.tokens += tokens


def _stack(options: argparse.Namespace) -> StackSettings:
    new_engine: Any = ProcessEngine
    if options.engine == "paced":
        from bench.paced_engine import run_paced_engine

        new_engine = partial(ProcessEngine, target=partial(run_paced_engine, options.step_ms / 1000))
    return StackSettings(
        model=options.model,
        amqp_url=options.amqp_url,
        database_url=options.database_url,
        processes=options.api_processes,
        threads=options.threads,
        new_engine=new_engine,
    )


def through_service(options: argparse.Namespace, stack: Stack) -> tuple[Samples, dict[str, list[float]]]:
    """The same over HTTP, and the CPU seconds of each of the service's processes meanwhile."""
    run_load(_load(options, stack.url, min(options.requests, max(WARM_UP, options.concurrency)), seed=2))
    before = stack.cpu_seconds()
    samples = run_load(_load(options, stack.url, options.requests, seed=1), to_stderr)
    after = stack.cpu_seconds()
    spent = {name: [b - a for a, b in zip(before[name], after[name], strict=False)] for name in before}
    return samples, spent


def _load(options: argparse.Namespace, url: str, requests: int, seed: int) -> Load:
    return Load(
        url=url,
        model=served_name(options.model),
        requests=requests,
        concurrency=options.concurrency,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        vocab_size=VOCAB_SIZE,
        processes=min(options.client_processes, options.concurrency),
        seed=seed,
    )


def report(
    options: argparse.Namespace, alone: Samples, through: Samples, cpu: dict[str, list[float]]
) -> dict[str, Any]:
    """What is printed."""
    return {
        "engine": options.engine,
        "step_ms": options.step_ms if options.engine == "paced" else None,
        "broker": "rabbitmq" if options.amqp_url else "embedded",
        "requests": options.requests,
        "concurrency": options.concurrency,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "added_ttft_p50_ms": _added(alone.ttft, through.ttft),
        "added_tpot_p50_ms": _added(alone.tpot, through.tpot),
        "in_process": measures(alone),
        "through_service": measures(through),
        "errors": dict(through.errors),
        "cpu_us_per_token": {
            name: [round(1e6 * each / max(1, through.tokens), 1) for each in spent] for name, spent in cpu.items()
        },
    }


def _added(alone: list[float], through: list[float]) -> float | None:
    """Difference of the medians in milliseconds."""
    return round(1000 * (statistics.median(through) - statistics.median(alone)), 3) if alone and through else None
