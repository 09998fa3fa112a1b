"""`headrace bench overload`: several times what the service can serve, for minutes, from clients that do as they are told.

The shipped commands run around an engine without a model whose steps take a fixed time. First as many clients as it can
serve at once measure its capacity. Then requests arrive at random times (Poisson) at a multiple of that. A client that is
refused with Retry-After comes again exactly then; one refused without leaves. One JSON line says how many were accepted
(all of which must end whole: lost is 0), how many of those sent away were admitted at their first return, and the resident
memory of each process at the start, in the middle and at the end of the overload, and once all is over.

With --amqp-url worker, api and jobs are processes of their own on that broker (give it a virtual host without other
users), without one the embedded broker joins them in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.http import quantiles
from bench.load import Load, bodies, run_load, to_stderr
from bench.paced_stack import MIB, add_stack_arguments, paced_stack
from bench.stack import Stack, running
from bench.streaming_client import Outcome, StreamingClient
from cli.settings import served_name

VOCAB_SIZE = 32_000
TOO_MANY = "http 429"
PROGRESS_SECONDS = 10.0
ANSWER_SECONDS = 600.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench overload", description=__doc__)
    made.add_argument("--factor", type=float, default=5.0, help="times the capacity that is asked for")
    made.add_argument("--seconds", type=float, default=300.0, help="for which new requests arrive")
    made.add_argument("--capacity-seconds", type=float, default=15.0, help="for which the capacity is measured, about")
    made.add_argument("--prompt-tokens", type=int, default=64)
    made.add_argument("--output-tokens", type=int, default=64)
    made.add_argument("--max-wait", type=float, default=30.0, help="of the service: estimated wait that it accepts")
    made.add_argument("--api-processes", type=int, default=1, help="with --amqp-url")
    made.add_argument("--seed", type=int, default=1)
    add_stack_arguments(made, step_ms=20.0, max_running=64)
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    with running(paced_stack(options, processes=options.api_processes, max_wait=options.max_wait)) as stack:
        report = run(options, stack)
    print(json.dumps(report), flush=True)
    sys.exit(0 if report["lost"] == 0 and not report["errors"] else 1)


@dataclass(slots=True)
class Seen:
    """What all clients came to. `returns` are those sent away with Retry-After; `kept` those of them that were admitted
    the first time they came back. Waits are the seconds that were told."""

    asked: int = 0
    accepted: int = 0
    turned_away: int = 0
    returns: int = 0
    came_back: int = 0
    kept: int = 0
    refusals: int = 0
    waits: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


class Clients:
    """They come at `rate` a second."""

    def __init__(self, load: Load, rate: float) -> None:
        address = urlsplit(load.url)
        self.seen = Seen()
        self._load = load
        self._rate = rate
        self._draw = random.Random(load.seed)
        host, port = address.hostname or "127.0.0.1", address.port or 80
        self._http = StreamingClient(host, port, "/v1/completions", timeout=load.timeout)

    async def run(self, seconds: float) -> None:
        """New ones come for `seconds`; returns when the last has gone."""
        prompts = random.Random(f"{self._load.seed}-prompts")
        started, moment = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as group:
            while (moment := moment + self._draw.expovariate(self._rate)) < seconds:
                await asyncio.sleep(max(0.0, started + moment - time.monotonic()))
                group.create_task(self._one(bodies(self._load, 0, prompts)[0]))
        self._http.close()

    async def _one(self, body: bytes) -> None:
        """One client, until it has its answer or is told to leave."""
        seen, refused = self.seen, 0
        seen.asked += 1
        while (outcome := await self._http.stream(body)).error == TOO_MANY:
            refused += 1
            seen.refusals += 1
            seen.came_back += refused == 2
            if outcome.retry_after is None:
                seen.turned_away += 1
                return
            seen.returns += refused == 1
            seen.waits.append(outcome.retry_after)
            await asyncio.sleep(outcome.retry_after)
        seen.came_back += refused == 1
        seen.kept += refused == 1 and outcome.error is None
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self.seen.accepted += 1
            self.seen.ttft.append(outcome.first - outcome.started)
        else:
            self.seen.errors[outcome.error] += 1


def run(options: argparse.Namespace, stack: Stack) -> dict[str, Any]:
    """The report."""
    to_stderr("capacity ...")
    capacity = measure_capacity(options, stack.url)
    to_stderr(f"capacity {capacity:.1f} requests a second; now {options.factor:g} times that")
    clients = Clients(_load(options, stack.url, 1), options.factor * capacity)
    started = time.monotonic()
    memory = uvloop.run(_overload(options, stack, clients))
    return report(options, capacity, clients.seen, memory) | {"seconds": round(time.monotonic() - started, 1)}


def measure_capacity(options: argparse.Namespace, url: str) -> float:
    """Requests a second with all of the engine's slots taken, and half as many requests waiting."""
    expected = options.max_running / (options.output_tokens * options.step_ms / 1000)
    requests = max(2 * options.max_running, round(expected * options.capacity_seconds))
    samples = run_load(_load(options, url, requests))
    if samples.errors:
        raise RuntimeError(f"requests failed while the capacity was measured: {dict(samples.errors)}")
    return len(samples.e2e) / samples.seconds


def _load(options: argparse.Namespace, url: str, requests: int) -> Load:
    return Load(
        url=url,
        model=served_name(options.model),
        requests=requests,
        concurrency=options.max_running + options.max_running // 2,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        vocab_size=VOCAB_SIZE,
        processes=1,
        seed=options.seed,
        timeout=ANSWER_SECONDS,
    )


async def _overload(options: argparse.Namespace, stack: Stack, clients: Clients) -> dict[str, dict[str, list[float]]]:
    """Resident memory in MiB, by the moment, by process."""
    memory = {"start": stack.resident_bytes()}
    crowd = asyncio.create_task(clients.run(options.seconds))
    telling = asyncio.create_task(_tell(clients.seen))
    for name in ("middle", "end"):
        await asyncio.wait([crowd], timeout=options.seconds / 2)
        memory[name] = stack.resident_bytes()
    await crowd
    telling.cancel()
    memory["over"] = stack.resident_bytes()
    return {
        when: {name: [round(each / MIB, 1) for each in sizes] for name, sizes in by_name.items()}
        for when, by_name in memory.items()
    }


async def _tell(seen: Seen) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        to_stderr(f"{seen.asked} asked, {seen.accepted} accepted and answered, {seen.turned_away} left")


def report(options: argparse.Namespace, capacity: float, seen: Seen, memory: dict[str, Any]) -> dict[str, Any]:
    """What is printed."""
    failed = sum(number for error, number in seen.errors.items() if not error.startswith("http "))
    return {
        "broker": "rabbitmq" if options.amqp_url else "embedded",
        "api_processes": options.api_processes,
        "capacity_request_s": round(capacity, 2),
        "offered_request_s": round(options.factor * capacity, 2),
        "asked": seen.asked,
        "accepted": seen.accepted + failed,
        "lost": failed,
        "refusals": seen.refusals,
        "turned_away": seen.turned_away,
        "told_to_return": seen.returns,
        "admitted_at_first_return": seen.kept,
        "share_admitted_at_first_return": round(seen.kept / seen.came_back, 4) if seen.came_back else None,
        "longest_retry_after_s": max(seen.waits, default=None),
        "ttft_ms": quantiles(seen.ttft, 50, 99),
        "errors": dict(seen.errors),
        "resident_mib": memory,
    }
