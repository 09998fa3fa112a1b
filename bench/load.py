"""A load of streamed completions from several client processes, and what they saw."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from urllib.parse import urlsplit

import uvloop

from bench.streaming_client import Outcome, StreamingClient

START_DELAY = 0.1
PROGRESS_SECONDS = 2.0
FIRST_TOKEN_ID = 300
"""Ids below are often special."""
WORDS = ("river", "mill", "stone", "wheel", "water", "grain", "dam", "sluice", "valley", "bridge", "ferry", "meadow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`requests` in all, `concurrency` at a time or, with a `rate`, that many a second on average at random times
    (Poisson), however many are under way. Prompts are random token ids below `vocab_size`, or with `chat` as many words."""

    url: str
    model: str
    requests: int = 512
    concurrency: int = 256
    rate: float = 0.0
    prompt_tokens: int = 512
    output_tokens: int = 256
    vocab_size: int = 120_000
    chat: bool = False
    processes: int = 4
    seed: int = 1
    timeout: float = 600.0
    key: str = ""

    def share(self, rank: int) -> int:
        """Requests of one client process."""
        return self.requests // self.processes + (rank < self.requests % self.processes)

    def slots(self, rank: int) -> int:
        """Requests that one client process has under way."""
        return self.concurrency // self.processes + (rank < self.concurrency % self.processes)


@dataclass(slots=True)
class Samples:
    """Seconds, of the requests that completed; `tokens` as the server counted them. Times are those of `time.time`."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    e2e: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    ended: float = 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.errors[outcome.error] += 1
            return
        self.ttft.append(outcome.first - outcome.started)
        self.gaps += outcome.gaps
        self.tpot.append((outcome.last - outcome.first) / max(1, outcome.tokens - 1))
        self.e2e.append(outcome.last - outcome.started)
        self.tokens += outcome.tokens

    def merge(self, other: Samples) -> None:
        self.ttft += other.ttft
        self.gaps += other.gaps
        self.tpot += other.tpot
        self.e2e += other.e2e
        self.tokens += other.tokens
        self.errors += other.errors
        self.started = min(self.started or other.started, other.started)
        self.ended = max(self.ended, other.ended)

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def bodies(load: Load, rank: int, draw: random.Random) -> list[bytes]:
    """The requests of one client process."""
    common = {
        "model": load.model,
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    made = []
    for _ in range(load.share(rank)):
        if load.chat:
            text = " ".join(draw.choice(WORDS) for _ in range(load.prompt_tokens))
            prompt: dict[str, object] = {"messages": [{"role": "user", "content": text}]}
        else:
            low = min(FIRST_TOKEN_ID, load.vocab_size // 2)
            prompt = {"prompt": [draw.randrange(low, load.vocab_size) for _ in range(load.prompt_tokens)]}
        made.append(json.dumps(common | prompt, separators=(",", ":")).encode())
    return made


async def run_share(
    load: Load, requests: list[bytes], slots: int, draw: random.Random, on_done: Callable[[], None]
) -> Samples:
    """Run the requests of one client process to their end."""
    address = urlsplit(load.url)
    path = address.path.rstrip("/") + ("/v1/chat/completions" if load.chat else "/v1/completions")
    host, port = address.hostname or "127.0.0.1", address.port or 80
    client = StreamingClient(host, port, path, load.key, timeout=load.timeout)
    samples = Samples(started=time.time())
    free = asyncio.Semaphore(len(requests) if load.rate else slots)

    async def one(body: bytes) -> None:
        async with free:
            samples.add(await client.stream(body))
        on_done()

    tasks = []
    for body in requests:
        tasks.append(asyncio.create_task(one(body)))
        if load.rate:
            await asyncio.sleep(draw.expovariate(load.rate / load.processes))
    await asyncio.gather(*tasks)
    samples.ended = time.time()
    client.close()
    return samples


def _client_process(load: Load, rank: int, pipe: Connection) -> None:
    """Make the requests, say so, start when told, report counts and at last the samples."""
    draw = random.Random(f"{load.seed}-{rank}")
    requests = bodies(load, rank, draw)
    pipe.send(None)
    time.sleep(max(0.0, pipe.recv() - time.time()))
    pipe.send(uvloop.run(run_share(load, requests, load.slots(rank), draw, lambda: pipe.send(1))))


def run_load(load: Load, progress: Callable[[str], None] | None = None) -> Samples:
    """Run the whole load; `progress` gets a line now and then. Raises EOFError where a client process dies."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for rank in range(load.processes):
        ours, theirs = context.Pipe()
        context.Process(target=_client_process, args=(load, rank, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    start = time.time() + START_DELAY
    for pipe in pipes:
        pipe.send(start)
    return _collect(load, pipes, progress or (lambda line: None))


def _collect(load: Load, pipes: list[Connection], progress: Callable[[str], None]) -> Samples:
    total, done, told = Samples(), 0, time.monotonic()
    open_pipes = list(pipes)
    while open_pipes:
        for ready in wait(open_pipes, timeout=PROGRESS_SECONDS):
            assert isinstance(ready, Connection)
            message = ready.recv()
            if isinstance(message, Samples):
                total.merge(message)
                open_pipes.remove(ready)
            else:
                done += message
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            progress(f"{done} of {load.requests} requests have ended")
    return total


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
