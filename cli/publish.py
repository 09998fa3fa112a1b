"""`headrace publish`: jobs straight to the queue, what comes back to the terminal."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from api.errors import ApiError
from api.queue_client import QueueClient
from cli.errors import StartError
from cli.lifecycle import say
from cli.services import amqp_broker, connected
from cli.settings import PublishSettings, served_name
from schemas.messages import Delta, Job, Result

EXIT_JOB_FAILED = 1


def run(settings: PublishSettings) -> None:
    """Publish and print; ends with 1 where a job did not complete. Raises StartError."""
    given = [name for name in ("message", "messages", "prompt", "file") if getattr(settings, name)]
    if len(given) > 1:
        raise StartError(f"give one of --{' and --'.join(given)}, not both")
    if settings.file:
        completed = uvloop.run(_publish_all(_file_jobs(settings), settings))
    else:
        completed = uvloop.run(_publish_one(job_of(_content(settings) | {"stream": True}, settings), settings))
    if not completed:
        sys.exit(EXIT_JOB_FAILED)


async def _publish_one(job: Job, settings: PublishSettings) -> bool:
    """Stream one answer to the terminal. True where it completed."""
    async with connected(amqp_broker(settings, "headrace-publish")) as broker:
        client = QueueClient(broker)
        await client.start()
        try:
            result = await _stream(client, job)
        except ApiError as error:
            raise StartError(f"not published: {error.message} Is a worker for {job.model!r} running?") from error
        finally:
            await client.close()
    say(_summary(result))
    return result.outcome == "completed"


def _content(settings: PublishSettings) -> dict[str, Any]:
    """What the job says, as the Job's own fields."""
    if settings.prompt:
        return {"prompt": settings.prompt}
    if settings.messages:
        try:
            return {"messages": json.loads(settings.messages)}
        except ValueError as error:
            raise StartError(f"--messages is no JSON: {error}") from error
    message = settings.message or sys.stdin.read().strip()
    if not message:
        raise StartError("nothing to say: give --message, --messages, --prompt or --file, or write to standard input")
    return {"messages": [{"role": "user", "content": message}]}


def job_of(fields: dict[str, Any], settings: PublishSettings) -> Job:
    """A Job, with an id, the model and the sampling of the settings where the fields do not say. Raises StartError."""
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": settings.seed}
    given = fields.get("sampling")
    whole = {"id": f"job-{uuid.uuid4().hex}", "model": served_name(settings.model)} | fields
    if given is None or isinstance(given, dict):
        whole["sampling"] = {name: value for name, value in sampling.items() if value is not None} | (given or {})
    try:
        return msgspec.convert(whole, Job)
    except msgspec.ValidationError as error:
        raise StartError(f"this is no job: {error}; docs/queue.md says what a job holds") from error


async def _stream(client: QueueClient, job: Job) -> Result:
    async with client.submit(job) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
            else:
                print(flush=True)
                return event
    raise AssertionError("a stream ends in a Result")


def _summary(result: Result) -> str:
    usage = result.usage
    tokens = f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens"
    return f"{result.outcome}: {result.error.message if result.error else tokens}"


async def _publish_all(jobs: list[Job], settings: PublishSettings) -> bool:
    """Run the jobs, some at a time; each Result is one JSON line, in the order in which they end."""
    async with connected(amqp_broker(settings, "headrace-publish")) as broker:
        client = QueueClient(broker)
        await client.start()
        limit = asyncio.Semaphore(settings.concurrency)
        try:
            outcomes = await asyncio.gather(*(_run_one(client, job, limit) for job in jobs))
        finally:
            await client.close()
    say(f"{outcomes.count(True)} of {len(jobs)} jobs completed")
    return all(outcomes)


def _file_jobs(settings: PublishSettings) -> list[Job]:
    if settings.file == "-":
        return list(read_jobs(sys.stdin, settings))
    try:
        with Path(settings.file).open(encoding="utf-8") as lines:
            return list(read_jobs(lines, settings))
    except OSError as error:
        raise StartError(f"cannot read {settings.file}: {error.strerror}") from error


def read_jobs(lines: Iterable[str], settings: PublishSettings) -> Iterator[Job]:
    """One job a line; empty lines are skipped. Raises StartError with the line's number."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise StartError(f"line {number} is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise StartError(f"line {number} is no JSON object")
        try:
            yield job_of(fields | {"stream": False}, settings)
        except StartError as error:
            raise StartError(f"line {number}: {error}") from error


async def _run_one(client: QueueClient, job: Job, limit: asyncio.Semaphore) -> bool:
    async with limit:
        result = await _result(client, job)
    print(msgspec.json.encode(result).decode(), flush=True)
    return result.outcome == "completed"


async def _result(client: QueueClient, job: Job) -> Result:
    """The job's Result; a job that could not be published has failed."""
    try:
        async with client.submit(job) as stream:
            async for event in stream:
                if isinstance(event, Result):
                    return event
    except ApiError as error:
        return Result(job=job.id, model=job.model, outcome="failed", error=error.info())
    raise AssertionError("a stream ends in a Result")
