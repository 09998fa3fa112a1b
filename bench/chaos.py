"""`headrace bench chaos`: jobs through all doors while everything is killed in turn; then the books are compared.

RabbitMQ, Postgres, api processes, jobs and workers run as processes of their own on this machine, the workers with a
small random model on the CPU. Progress goes to stderr; the last line on stdout is one JSON object, and the exit code is 1
where a job was lost, counted twice or wrongly, or where a text is not that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from api.queue_client import QueueClient
from bench.chaos_load import BATCH_LINES, SPECS, Load, Record
from bench.chaos_stack import ChaosStack, StackSettings
from bench.services import Postgres, RabbitMQ
from bench.tiny_model import write_tiny_model
from broker.amqp import AmqpBroker
from schemas.topology import topology

LEDGER_SECONDS = 60.0
"""For the last results to reach the ledger once every client has its answer."""
BATCH_EVERY = 5
"""Of so many jobs one is a batch line."""
PROGRESS_SECONDS = 5.0
LEAD_SECONDS = 2.0
"""Within which the jobs begin that a kill shall find under way."""
QUERY = "select job_id, outcome, epoch, completion_tokens from results left join usage using (job_id)"


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
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--min-kills", type=int, default=6, help="jobs are held back so that so many happen meanwhile")
    parser.add_argument("--stop-seconds", type=float, default=12.0, help="how long a SIGSTOP lasts")
    parser.add_argument("--heartbeat", type=int, default=3, help="AMQP heartbeat in seconds; the service's own is 10")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which unanswered jobs are lost")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--apis", type=int, default=2)
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
    say("starting RabbitMQ, Postgres, api, jobs and workers ...")
    async with services(options, folder) as chaos:
        return await _measure(options, chaos)


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


async def _measure(options: argparse.Namespace, chaos: ChaosStack) -> dict[str, Any]:
    started = time.monotonic()
    async with publisher(chaos) as client:
        load = Load(chaos.urls, "tiny", client, started + options.timeout)
        try:
            await load.learn()
            say(f"learnt {SPECS} answers in {time.monotonic() - started:.1f} s; {options.jobs} jobs begin")
            began = time.monotonic()
            await _trouble_and_load(options, chaos, load)
            ledger = await _ledger(chaos, load)
        finally:
            await load.close()
    load.learn_more(_whole_texts(load))
    for record in load.records:
        if record.answered and not load.is_right(record):
            say(f"wrong: {record.door} {record.job}, {record.counted} of {record.tokens} tokens: {record.text!r}")
    return make_report(load, ledger, chaos.kills) | {"seconds": round(time.monotonic() - began, 1)}


async def _trouble_and_load(options: argparse.Namespace, chaos: ChaosStack, load: Load) -> None:
    """Both, side by side; trouble ends, whole, once the jobs have."""
    done = asyncio.Event()
    telling = asyncio.create_task(_tell(options, chaos, load))
    trouble = asyncio.create_task(_kill_in_turn(options, chaos, done))
    try:
        await _all_jobs(options, load, Pace(options, chaos))
        done.set()
        await trouble
    finally:
        for task in (trouble, telling):
            task.cancel()


async def _kill_in_turn(options: argparse.Namespace, chaos: ChaosStack, done: asyncio.Event) -> None:
    for name in itertools.cycle(chaos.events()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), options.kill_every)
        if done.is_set():
            return
        say(f"{name} ...")
        await chaos.cause(name)


class Pace:
    """Gives each of `min_kills` kills its part of the jobs, begun shortly before it."""

    def __init__(self, options: argparse.Namespace, chaos: ChaosStack) -> None:
        self._per_job = options.min_kills / options.jobs
        self._seconds = options.kill_every
        self._moments = chaos.moments
        self._began = time.monotonic()

    async def wait(self, number: int) -> None:
        """Until this job's turn."""
        kills, part = divmod(number * self._per_job, 1)
        while len(self._moments) < kills:  # noqa: ASYNC110 (for seconds)
            await asyncio.sleep(0.1)
        since = self._moments[int(kills) - 1] if kills else self._began
        await asyncio.sleep(max(0.0, since + self._seconds - LEAD_SECONDS * (1 - part) - time.monotonic()))


async def _all_jobs(options: argparse.Namespace, load: Load, pace: Pace) -> None:
    """Every BATCH_EVERY-th job is a batch line, in batches of BATCH_LINES."""
    numbers = iter(range(options.jobs))
    batches: list[asyncio.Task[None]] = []

    async def lane() -> None:
        for number in numbers:
            await pace.wait(number)
            if number % BATCH_EVERY != BATCH_EVERY - 1:
                await load.one(number)
            elif number % (BATCH_EVERY * BATCH_LINES) == BATCH_EVERY - 1:
                left = (options.jobs - number + BATCH_EVERY - 1) // BATCH_EVERY
                batches.append(asyncio.create_task(load.batch(1_000_000 + number, min(BATCH_LINES, left))))

    await asyncio.gather(*(lane() for _ in range(options.concurrency)))
    await asyncio.gather(*batches)


async def _tell(options: argparse.Namespace, chaos: ChaosStack, load: Load) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        answered = sum(record.answered for record in load.records)
        kills = sum(map(len, chaos.kills.values()))
        say(f"{answered} of {options.jobs + SPECS} answered, {len(load.records)} asked, {kills} kills")


@dataclass(frozen=True, slots=True)
class Entry:
    """A job in the ledger."""

    outcome: str
    epoch: int
    tokens: int


async def _ledger(chaos: ChaosStack, load: Load) -> dict[str, Entry]:
    """All entries, once every accepted job has one, or LEDGER_SECONDS later."""
    wanted = {record.job for record in load.records if record.accepted and "/" not in record.job}
    limit = time.monotonic() + LEDGER_SECONDS
    while True:
        try:
            entries = await _read_ledger(chaos.database_url)
        except (OSError, SQLAlchemyError):
            entries = {}
        if wanted <= entries.keys() or time.monotonic() > limit:
            return entries
        await asyncio.sleep(0.5)


async def _read_ledger(url: str) -> dict[str, Entry]:
    engine = create_async_engine(url)
    try:
        async with asyncio.timeout(LEDGER_SECONDS), engine.connect() as connection:
            rows = (await connection.execute(text(QUERY))).all()
        return {row.job_id: Entry(row.outcome, row.epoch, row.completion_tokens or 0) for row in rows}
    finally:
        await engine.dispose()


def make_report(load: Load, ledger: dict[str, Entry], kills: dict[str, list[float]]) -> dict[str, Any]:
    """The figures; `lost` are jobs that were accepted and have no answer, no error, or no place in the ledger."""
    accepted = [record for record in load.records if record.accepted]
    answered = [record for record in accepted if record.answered]
    interrupted = [record for record in accepted if _was_interrupted(record, ledger, kills)]
    by_kill = [r for r in interrupted if any(map(r.was_under_way, kills.get("worker SIGKILL", [])))]
    return {
        "accepted": len(accepted),
        "completed": len(answered),
        "failed": sum(bool(record.error) for record in accepted if not record.answered),
        "lost": sum(_is_lost(record, ledger) for record in accepted),
        "duplicated": sum(_is_double(record, ledger) for record in answered),
        "usage_rows": len(ledger),
        "output_tokens": sum(record.tokens for record in answered),
        "usage_tokens": sum(ledger[record.job].tokens for record in answered if record.job in ledger),
        "streams_interrupted": len(interrupted),
        "streams_whole": sum(record.answered and load.is_right(record) for record in interrupted),
        "gap_p99_s": round(percentile([record.gap() for record in by_kill], 0.99), 2),
        "kills": {name: len(times) for name, times in kills.items()},
        "wrong_answers": sum(not load.is_right(record) for record in answered),
        "streams_cut_by_api": sum(record.cut for record in accepted),
        "orphan_rows": len(ledger.keys() - {record.job for record in accepted}),
        "never_accepted": len(load.records) - len(accepted),
        "refusals": load.refused,
        "errors": sorted({record.error for record in load.records if record.error})[:5],
    }


def _whole_texts(load: Load) -> dict[int, set[str]]:
    """Texts that came in one message, and so from one run from beginning to end. Where two tokens are nearly as likely, it
    is the batch around a request that decides between them, so that a request may have more than one right answer."""
    texts: dict[int, set[str]] = {}
    for record in load.records:
        if record.answered and record.counted is None:
            texts.setdefault(record.number % SPECS, set()).add(record.text)
    return texts


def _was_interrupted(record: Record, ledger: dict[str, Entry], kills: dict[str, list[float]]) -> bool:
    """A stream that had begun and not ended when its worker, as the ledger's epoch tells, or the broker went. What a
    killed api process cut is not among them."""
    moments = [moment for name, times in kills.items() if name.split()[0] in ("worker", "broker") for moment in times]
    entry = ledger.get(record.job)
    return entry is not None and entry.epoch > 0 and not record.cut and any(map(record.was_under_way, moments))


def _is_lost(record: Record, ledger: dict[str, Entry]) -> bool:
    told = record.answered or record.cut or bool(record.error)
    return not told or record.job not in ledger or record.error == "no answer in time"


def _is_double(record: Record, ledger: dict[str, Entry]) -> bool:
    """Counted otherwise than its client was told, or put out twice."""
    entry = ledger.get(record.job)
    return (entry is not None and entry.tokens != record.tokens) or record.error.startswith("twice")


def percentile(values: list[float], part: float) -> float:
    """Of no values, 0."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def is_sound(report: dict[str, Any]) -> bool:
    """Whether every promise held."""
    zero = ("lost", "duplicated", "failed", "wrong_answers", "never_accepted")
    whole = report["streams_whole"] == report["streams_interrupted"]
    return whole and not any(report[name] for name in zero) and report["output_tokens"] == report["usage_tokens"]
