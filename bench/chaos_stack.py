"""The shipped commands as processes that are started again whenever they end, and what can happen to them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from api.store.migrate import upgrade
from bench.services import Postgres, RabbitMQ, free_port

READY_TIMEOUT = 120.0
STOP_TIMEOUT = 40.0
RESTART_SECONDS = 0.3
POLL_SECONDS = 0.1


class Supervised:
    """One command, kept running. Each of its lives has a log of its own in `folder`."""

    def __init__(
        self, name: str, arguments: list[str], ready: str, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.lives = 0
        self._arguments = arguments
        self._ready = re.compile(ready)
        self._folder = folder
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._log = folder / name
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._stopping:
            self.lives += 1
            self._log = self._folder / f"{self.name}-{self.lives}.log"
            with self._log.open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "cli.main", *self._arguments),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    start_new_session=True,
                )
            await self._process.wait()
            await asyncio.sleep(RESTART_SECONDS)

    @property
    def is_ready(self) -> bool:
        return self._log.is_file() and self._ready.search(self._log.read_text(errors="replace")) is not None

    async def until_ready(self) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(READY_TIMEOUT):
            while not self.is_ready:  # noqa: ASYNC110 (it is another process's log)
                await asyncio.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL: no child is told; an engine ends by itself."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()

    async def pause(self, seconds: float) -> None:
        """SIGSTOP with all children, SIGCONT later."""
        assert self._process is not None
        group = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)

    async def stop(self) -> None:
        """SIGTERM; after STOP_TIMEOUT seconds SIGKILL, children and all."""
        self._stopping = True
        if self._process is None or self._keeper is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        await asyncio.wait([self._keeper], timeout=STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._keeper.cancel()


@dataclass(frozen=True, slots=True)
class StackSettings:
    model: Path
    folder: Path
    workers: int
    apis: int
    amqp_url: str
    database_url: str
    stop_seconds: float


class ChaosStack:
    """`rabbitmq` and `postgres` are None where they are somebody else's: those are left alone."""

    def __init__(self, settings: StackSettings, rabbitmq: RabbitMQ | None, postgres: Postgres | None) -> None:
        self._settings = settings
        self._rabbitmq = rabbitmq
        self._postgres = postgres
        self.kills: dict[str, list[float]] = {}
        self.amqp_url, self.database_url = settings.amqp_url, settings.database_url
        ports = [free_port() for _ in range(settings.apis)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        worker = ["worker", "--model", str(settings.model), "--device", "cpu", "--max-running", "64", "--threads", "1"]
        self._apis = [self._part(f"api-{port}", ["api", "--port", str(port)], "listening on") for port in ports]
        self._workers = [self._part(f"worker-{n}", worker, "ready: serving") for n in range(settings.workers)]
        self._jobs = [self._part("jobs", ["jobs"], "ready: dispatching")]
        self._turn = 0

    def _part(self, name: str, arguments: list[str], ready: str) -> Supervised:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        environment = inherited | {
            "AMQP_URL": self._settings.amqp_url,
            "DATABASE_URL": self._settings.database_url,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_WAIT_POLICY": "PASSIVE",
            "HEADRACE_DRAIN_SECONDS": "5",
        }
        environment.pop("TRITON_INTERPRET", None)
        return Supervised(name, arguments, ready, self._settings.folder, environment)

    @property
    def parts(self) -> list[Supervised]:
        return [*self._jobs, *self._apis, *self._workers]

    async def start(self) -> None:
        """Ready when this returns. Raises TimeoutError."""
        await upgrade(self._settings.database_url)
        for part in self.parts:
            part.start()
        await self.until_ready()

    async def until_ready(self) -> None:
        """All commands are up, after whatever happened. Raises TimeoutError."""
        await asyncio.gather(*(part.until_ready() for part in self.parts))

    async def stop(self) -> None:
        await asyncio.gather(*(part.stop() for part in self.parts))

    def events(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What can happen, by name, in the order in which it does."""
        events: dict[str, Callable[[], Awaitable[None]]] = {
            "worker SIGKILL": lambda: self._kill(self._workers),
            "api SIGKILL": lambda: self._kill(self._apis),
            "worker SIGSTOP": lambda: self._pause(self._workers),
            "jobs SIGKILL": lambda: self._kill(self._jobs),
        }
        if self._rabbitmq is not None:
            events["broker SIGKILL"] = self._kill_broker
        if self._postgres is not None:
            events["postgres SIGKILL"] = self._kill_postgres
        events["jobs SIGSTOP"] = lambda: self._pause(self._jobs)
        events["api SIGSTOP"] = lambda: self._pause(self._apis)
        return events

    async def cause(self, name: str) -> None:
        """Have it happen. Returns when a killed server is up again, a killed command started again, a stopped one
        continued."""
        self.kills.setdefault(name, []).append(time.monotonic())
        await self.events()[name]()

    def _next(self, parts: list[Supervised]) -> Supervised:
        self._turn += 1
        return parts[self._turn % len(parts)]

    async def _kill(self, parts: list[Supervised]) -> None:
        part = self._next(parts)
        life = part.lives
        part.kill()
        async with asyncio.timeout(READY_TIMEOUT):
            while part.lives == life:  # noqa: ASYNC110 (it is started again by its keeper)
                await asyncio.sleep(POLL_SECONDS)

    async def _pause(self, parts: list[Supervised]) -> None:
        await self._next(parts).pause(self._settings.stop_seconds)

    async def _kill_broker(self) -> None:
        assert self._rabbitmq is not None
        await asyncio.to_thread(self._rabbitmq.kill)
        await asyncio.to_thread(self._rabbitmq.start)

    async def _kill_postgres(self) -> None:
        assert self._postgres is not None
        await asyncio.to_thread(self._postgres.kill)
        await asyncio.to_thread(self._postgres.start)
