"""Two hundred jobs through all doors, on RabbitMQ and Postgres, while the worker is killed twice: nothing is lost,
nothing counts twice."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import httpx
import psutil
import pytest

from tests.cli.headrace import Running, run
from tests.e2e.service import BATCH_ENDS, BATCH_TIMEOUT, MODEL

pytestmark = pytest.mark.model
CHAT = "/v1/chat/completions"
HTTP_JOBS, BATCH_LINES, DIRECT_JOBS = 80, 80, 40
JOBS = HTTP_JOBS + BATCH_LINES + DIRECT_JOBS
KILLS = (20, 90)
"""How many of the HTTP and direct jobs have ended when the worker is killed."""
TIMEOUT = 200.0


@dataclass
class Seen:
    """What clients were told: completed answers and their tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    answers: list[str] = field(default_factory=list)
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def add(self, name: str, usage: dict[str, int]) -> None:
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]
        self.answers.append(name)
        async with self.ended:
            self.ended.notify_all()

    async def until(self, count: int) -> None:
        async with self.ended:
            await self.ended.wait_for(lambda: len(self.answers) >= count)


class Supervisor:
    """Keeps one worker running, as a deployment's does. `kill` is what happens to it."""

    def __init__(self, folder: Path, services: dict[str, str]) -> None:
        self._folder, self._services = folder, services
        self._count = 0
        self.worker = self._start()

    def _start(self) -> Running:
        self._count += 1
        log = self._folder / f"worker-{self._count}.log"
        # A small cache and few at once: both queues are full of work when the worker dies.
        flags = ("--max-running", "16", "--drain-seconds", "5")
        return Running(log, "worker", *flags, **self._services)

    async def ready(self) -> None:
        await asyncio.to_thread(self.worker.wait_for, f"ready: serving {MODEL}")

    async def kill(self) -> None:
        """SIGKILL the front; its engine must end by itself. Then start the next one."""
        engines = [child.pid for child in psutil.Process(self.worker.process.pid).children(recursive=True)]
        await asyncio.to_thread(self.worker.kill)
        assert self.worker.process.returncode == -signal.SIGKILL
        self.worker = self._start()
        async with asyncio.timeout(20):
            while any(_runs(engine) for engine in engines):  # noqa: ASYNC110 (they are not our children)
                await asyncio.sleep(0.05)
        await self.ready()


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@dataclass
class Stack:
    """The tiers as processes of their own."""

    url: str
    amqp_url: str
    database_url: str
    supervisor: Supervisor


@pytest.fixture
async def stack(tmp_path: Path, amqp_vhost_url: str, postgres_db_url: str) -> AsyncIterator[Stack]:
    services = {"AMQP_URL": amqp_vhost_url, "DATABASE_URL": postgres_db_url, "OMP_WAIT_POLICY": "PASSIVE"}
    migrated = await asyncio.to_thread(run, "migrate", **services)
    assert migrated.returncode == 0, migrated.stderr
    supervisor = Supervisor(tmp_path, services)
    api = Running(tmp_path / "api.log", "api", "--port", "0", **services)
    jobs = Running(tmp_path / "jobs.log", "jobs", **services)
    try:
        url = (await asyncio.to_thread(api.wait_for, r"listening on (http://\S+)"))[1]
        await asyncio.to_thread(jobs.wait_for, "ready: dispatching")
        await supervisor.ready()
        yield Stack(url, amqp_vhost_url, postgres_db_url.replace("+asyncpg", ""), supervisor)
        for command in (supervisor.worker, jobs, api):
            assert await asyncio.to_thread(command.stop) == 0, command.log.read_text()
            assert "Traceback" not in command.log.read_text(), command.log.read_text()
    finally:
        for command in (supervisor.worker, jobs, api):
            command.kill()


def body(number: int, **parameters: Any) -> dict[str, Any]:
    """Sampled, each with a seed of its own and 8 to 24 tokens."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Tell me about the number {number}."}],
        "max_tokens": 8 + number % 17,
        "temperature": 0.8,
        "seed": number,
        **parameters,
    }


async def ask(client: httpx.AsyncClient, number: int, seen: Seen) -> None:
    """One HTTP job, every second one streamed. A stream's tokens are counted by their log probabilities."""
    if number % 2:
        answer = await client.post(CHAT, json=body(number, ignore_eos=True))
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
    else:
        usage = await stream(client, number)
    assert usage["completion_tokens"] == 8 + number % 17
    await seen.add(f"http-{number}", usage)


async def stream(client: httpx.AsyncClient, number: int) -> dict[str, int]:
    extra = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "logprobs": True}
    shown, done, usage = 0, 0, {}
    async with client.stream("POST", CHAT, json=body(number, **extra)) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            assert '"error"' not in line, line
            done += line == "data: [DONE]"
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                usage = chunk["usage"] or usage
                shown += sum(len((choice["logprobs"] or {}).get("content") or []) for choice in chunk["choices"])
    assert done == 1
    assert shown == usage["completion_tokens"]
    return usage


async def over_http(url: str, seen: Seen) -> None:
    limits = httpx.Limits(max_connections=HTTP_JOBS)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        await asyncio.gather(*(ask(client, number, seen) for number in range(HTTP_JOBS)))


async def direct(amqp_url: str, seen: Seen) -> None:
    """What docs/queue.md tells a pipeline to do, with nothing of ours. A second terminal message of a job is an error
    unless it says the same: a worker may die between a Result and its acknowledgement."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        reply = await channel.declare_queue(exclusive=True)
        requests = await channel.get_exchange("headrace.requests")
        for number in range(DIRECT_JOBS):
            await publish(requests, reply.name, number)
        async with reply.iterator(no_ack=True, timeout=TIMEOUT) as frames:
            await read_results(frames, seen)


async def publish(requests: Any, reply_to: str, number: int) -> None:
    asked = body(number)
    sampling = {name: asked[name] for name in ("max_tokens", "temperature", "seed")} | {"ignore_eos": True}
    job = {"id": f"direct-{number}", "model": MODEL, "messages": asked["messages"], "sampling": sampling}
    content = json.dumps(job | {"reply_to": reply_to}).encode()
    message = aio_pika.Message(content, message_id=job["id"], delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await requests.publish(message, f"{MODEL}.interactive", timeout=10)


async def read_results(frames: Any, seen: Seen) -> None:
    usages: dict[str, dict[str, int]] = {}
    async for incoming in frames:
        for result in json.loads(incoming.body).get("results", []):
            assert result["outcome"] == "completed", result
            usage = {name: result["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
            if usages.setdefault(result["job"], usage) is usage:
                await seen.add(result["job"], usage)
            assert usages[result["job"]] == usage
        if len(usages) == DIRECT_JOBS:
            return


async def batch(url: str, seen: Seen) -> None:
    """Two batches of forty lines."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
        halves = [range(BATCH_LINES // 2), range(BATCH_LINES // 2, BATCH_LINES)]
        await asyncio.gather(*(one_batch(client, numbers, seen) for numbers in halves))


async def one_batch(client: httpx.AsyncClient, numbers: range, seen: Seen) -> None:
    lines = [
        {"custom_id": f"batch-{number}", "method": "POST", "url": CHAT, "body": body(number, ignore_eos=True)}
        for number in numbers
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)})
    request = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    made = (await client.post("/v1/batches", json=request)).json()
    async with asyncio.timeout(BATCH_TIMEOUT):
        while made["status"] not in BATCH_ENDS:
            await asyncio.sleep(0.2)
            made = (await client.get(f"/v1/batches/{made['id']}")).json()
    assert made["status"] == "completed", made
    assert made["request_counts"] == {"total": len(lines), "completed": len(lines), "failed": 0}
    output = (await client.get(f"/v1/files/{made['output_file_id']}/content")).text.splitlines()
    await take_output(output, made["usage"], seen)


async def take_output(lines: list[str], total: dict[str, int], seen: Seen) -> None:
    outputs = [json.loads(line) for line in lines]
    usages = [output["response"]["body"]["usage"] for output in outputs]
    assert sum(usage["completion_tokens"] for usage in usages) == total["output_tokens"]
    assert sum(usage["prompt_tokens"] for usage in usages) == total["input_tokens"]
    for output, usage in zip(outputs, usages, strict=True):
        await seen.add(output["custom_id"], usage)


async def trouble(supervisor: Supervisor, seen: Seen) -> None:
    for count in KILLS:
        await seen.until(count)
        await supervisor.kill()


async def test_two_hundred_jobs_and_two_kills(stack: Stack) -> None:
    seen = Seen()
    doors: list[Callable[[], Awaitable[None]]] = [
        lambda: over_http(stack.url, seen),
        lambda: batch(stack.url, seen),
        lambda: direct(stack.amqp_url, seen),
        lambda: trouble(stack.supervisor, seen),
    ]
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(door() for door in doors))
        assert sorted(seen.answers) == sorted(expected_names())
        await check_ledger(stack, seen)
    assert stack.supervisor.worker.log.name == f"worker-{len(KILLS) + 1}.log"


def expected_names() -> list[str]:
    counts = {"http": HTTP_JOBS, "batch": BATCH_LINES, "direct": DIRECT_JOBS}
    return [f"{door}-{number}" for door, count in counts.items() for number in range(count)]


@asynccontextmanager
async def database(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        yield connection
    finally:
        await connection.close(timeout=10)


async def check_ledger(stack: Stack, seen: Seen) -> None:
    """One outcome and one usage row a job, whose sums are those that clients saw; some jobs ran more than once."""
    async with database(stack.database_url) as connection:
        while await connection.fetchval("select count(*) from usage") < JOBS:  # noqa: ASYNC110 (another process's work)
            await asyncio.sleep(0.1)
        outcomes = await connection.fetch("select outcome, count(*) from results group by outcome")
        assert [tuple(row) for row in outcomes] == [("completed", JOBS)]
        row = await connection.fetchrow(
            "select count(*), count(distinct job_id), sum(prompt_tokens), sum(completion_tokens) from usage"
        )
        assert tuple(map(int, row)) == (JOBS, JOBS, seen.prompt_tokens, seen.completion_tokens)
        assert await connection.fetchval("select count(*) from results where epoch > 0") > 0
        workers = await connection.fetchval("select count(distinct worker) from results")
        assert workers == len(KILLS) + 1
    await check_queues(stack)


async def check_queues(stack: Stack) -> None:
    """No request and no Result is left, none was buried."""
    async with await aio_pika.connect(stack.amqp_url) as connection:
        channel = await connection.channel()
        for name in ("headrace.results", "headrace.dead", *(f"headrace.requests.{MODEL}.{c}" for c in CLASSES)):
            queue = await channel.get_queue(name)
            assert queue.declaration_result.message_count == 0, name


CLASSES = ("interactive", "batch")
