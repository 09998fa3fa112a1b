"""`headrace bench chaos`: jobs through all doors while everything is killed in turn; then the books are compared.

RabbitMQ, Postgres, api processes, jobs and workers run as processes of their own on this machine, the workers with a
small random model on the CPU. Progress goes to stderr; the last line on stdout is one JSON object, and the exit code is 1
where a job was lost, counted twice or wrongly, or where a text is not that of an undisturbed run.

No job begins after --timeout seconds, or after a SIGTERM; those under way then have a minute to end, and the books are
compared as ever.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from api.queue_client import QueueClient
from bench.chaos_load import BATCH_LINES, SPECS, Load
from bench.chaos_report import is_sound, make_report, read_ledger
from bench.chaos_schedule import Schedule
from bench.chaos_stack import ChaosStack, StackSettings
from bench.services import Postgres, RabbitMQ
from bench.tiny_model import write_tiny_model
from broker.amqp import AmqpBroker
from schemas.topology import topology

GRACE_SECONDS = 60.0
"""For jobs under way when the time is over."""
LEARN_SECONDS = 120.0
BATCH_EVERY = 5
"""Of so many jobs one is a batch line."""
PROGRESS_SECONDS = 5.0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    logging.disable(logging.ERROR)  # that connections get lost is the point
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as temporary:
        folder = Path(options.logs or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(options, folder))
    print(json.dumps(report))
    sys.exit(0 if is_sound(report) else 1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace bench chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="in all")
    parser.add_argument("--concurrency", type=int, default=32, help="clients at once, batches apart")
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds from one kill to the next")
    parser.add_argument("--min-kills", type=int, default=6, help="jobs are held back so that so many happen meanwhile")
    parser.add_argument("--stop-seconds", type=float, default=12.0, help="how long a SIGSTOP lasts")
    parser.add_argument("--heartbeat", type=int, default=3, help="AMQP heartbeat in seconds; the service's own is 10")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which no job begins")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread for its engine")
    parser.add_argument("--apis", type=int, default=2, help="processes")
    parser.add_argument("--amqp-url", default="", help="a RabbitMQ that is left alone, instead of a private one")
    parser.add_argument("--database-url", default="", help="a Postgres database that is left alone, empty")
    parser.add_argument("--logs", default="", help="folder for the processes' logs; kept")
    return parser.parse_args(arguments)


@asynccontextmanager
async def services(options: argparse.Namespace, folder: Path) -> AsyncIterator[ChaosStack]:
    """Everything up and ready."""
    async with AsyncExitStack() as stack:
        rabbitmq = None if options.amqp_url else RabbitMQ()
        postgres = None if options.database_url else Postgres()
        for service in (rabbitmq, postgres):
            if service is not None:
                stack.callback(service.remove)
                await asyncio.to_thread(service.start)
        settings = StackSettings(
            model=write_tiny_model(folder / "tiny"),
            folder=folder,
            workers=options.workers,
            apis=options.apis,
            amqp_url=(options.amqp_url or rabbitmq.url if rabbitmq else options.amqp_url)
            + f"?heartbeat={options.heartbeat}",
            database_url=options.database_url or _new_database(postgres),
            stop_seconds=options.stop_seconds,
        )
        chaos = ChaosStack(settings, rabbitmq, postgres)
        stack.push_async_callback(chaos.stop)
        await chaos.start()
        yield chaos


def _new_database(postgres: Postgres | None) -> str:
    assert postgres is not None
    return postgres.database_url(postgres.create_database())


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Models and logs are put into `folder`."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.call_later(options.timeout, over.set)
    say("starting RabbitMQ, Postgres, api, jobs and workers ...")
    async with services(options, folder) as chaos:
        return await _measure(options, chaos, over)


@asynccontextmanager
async def publisher(chaos: ChaosStack) -> AsyncIterator[QueueClient]:
    """The direct publisher's client."""
    broker = AmqpBroker(chaos.amqp_url, name="chaos")
    await broker.connect()
    try:
        await broker.declare(topology())
        client = QueueClient(broker)
        await client.start()
        yield client
        await client.close()
    finally:
        await broker.close()


async def _measure(options: argparse.Namespace, chaos: ChaosStack, over: asyncio.Event) -> dict[str, Any]:
    started = time.monotonic()
    async with publisher(chaos) as client:
        load = Load(chaos.urls, "tiny", client)
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                await load.learn()
            say(f"learnt {SPECS} answers in {time.monotonic() - started:.1f} s; {options.jobs} jobs begin")
            began = time.monotonic()
            await _trouble_and_load(options, chaos, load, over)
            ledger = await read_ledger(chaos.database_url, load)
        finally:
            await load.close()
    for record in load.records:
        if record.answered and not load.is_right(record):
            say(f"wrong: {record.door} {record.job}, {record.counted} of {record.tokens} tokens: {record.text!r}")
    report = make_report(load, ledger, chaos.kills)
    not_begun = options.jobs + SPECS - len(load.records)
    return report | {"not_begun": not_begun, "seconds": round(time.monotonic() - began, 1)}


async def _trouble_and_load(options: argparse.Namespace, chaos: ChaosStack, load: Load, over: asyncio.Event) -> None:
    """Both, side by side; trouble ends, whole, once the jobs have or the time is over."""
    schedule = Schedule(chaos, options.kill_every, options.jobs, options.min_kills, over)
    telling = asyncio.create_task(_tell(options, chaos, load))
    trouble = asyncio.create_task(schedule.kill_in_turn(say))
    jobs = asyncio.create_task(_all_jobs(options, load, schedule))
    jobs.add_done_callback(lambda _: over.set())
    try:
        await over.wait()
        await trouble
        await asyncio.wait([jobs], timeout=GRACE_SECONDS)
        if jobs.done():
            jobs.result()
    finally:
        for task in (trouble, telling, jobs):
            task.cancel()
        await asyncio.gather(trouble, telling, jobs, return_exceptions=True)


async def _all_jobs(options: argparse.Namespace, load: Load, schedule: Schedule) -> None:
    """Every BATCH_EVERY-th job is a batch line, in batches of BATCH_LINES."""
    numbers = iter(range(options.jobs))

    async def lane(group: asyncio.TaskGroup) -> None:
        for number in numbers:
            if not await schedule.turn(number):
                return
            if number % BATCH_EVERY != BATCH_EVERY - 1:
                await load.one(number)
            elif number % (BATCH_EVERY * BATCH_LINES) == BATCH_EVERY - 1:
                left = (options.jobs - number + BATCH_EVERY - 1) // BATCH_EVERY
                group.create_task(load.batch(1_000_000 + number, min(BATCH_LINES, left)))

    async with asyncio.TaskGroup() as group:
        for _ in range(options.concurrency):
            group.create_task(lane(group))


async def _tell(options: argparse.Namespace, chaos: ChaosStack, load: Load) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        answered = sum(record.answered for record in load.records)
        kills = sum(map(len, chaos.kills.values()))
        say(f"{answered} of {options.jobs + SPECS} answered, {len(load.records)} asked, {kills} kills")
