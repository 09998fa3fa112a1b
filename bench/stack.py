"""The whole service around an engine, in processes of its own: the shipped commands, with the engine of one's choice."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from api.store.migrate import upgrade
from cli.settings import ApiCommandSettings, JobsSettings, ServeSettings, WorkerCommandSettings
from cli.worker import NewEngine

START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
TICKS = 100.0
"""Of the clock in /proc/PID/stat, a second: Linux has 100 on every common machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """`model` gives the tokenizer, and the engine's weights where it has any. Without `amqp_url` everything runs in one
    process on the embedded broker, else there are a worker, `processes` of the api, and the jobs."""

    model: str
    amqp_url: str = ""
    database_url: str = ""
    processes: int = 1
    max_running: int = 512
    max_wait: float = 30.0
    threads: int | None = None
    new_engine: NewEngine


class Stack:
    """A running service. CPU times are in seconds since the start of each process."""

    def __init__(self, url: str, processes: dict[str, BaseProcess]) -> None:
        self.url = url
        self.processes = processes

    def cpu_seconds(self) -> dict[str, list[float]]:
        """Of each part's processes, parent first; the engine is the worker's child."""
        times: dict[str, list[float]] = {}
        for name, process in self.processes.items():
            assert process.pid is not None
            times[name] = [_cpu_seconds(pid) for pid in _family(process.pid)]
        return times

    def resident_bytes(self) -> dict[str, list[int]]:
        """Of each part's processes, parent first."""
        sizes: dict[str, list[int]] = {}
        for name, process in self.processes.items():
            assert process.pid is not None
            sizes[name] = [_resident_bytes(pid) for pid in _family(process.pid)]
        return sizes

    def wait_ready(self) -> None:
        """Raises RuntimeError where it does not become ready."""
        limit = time.monotonic() + START_TIMEOUT
        while time.monotonic() < limit and all(process.is_alive() for process in self.processes.values()):
            try:
                if httpx.get(f"{self.url}/ready", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.1)
        raise RuntimeError("the service did not become ready")

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(STOP_TIMEOUT)
            process.kill()


@contextmanager
def running(settings: StackSettings) -> Iterator[Stack]:
    """The service, ready. Raises RuntimeError where it does not start."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        database = settings.database_url or f"sqlite:///{folder}/headrace.db"
        asyncio.run(upgrade(database))
        port = _free_port()
        context = multiprocessing.get_context("spawn")
        stack = Stack(
            f"http://127.0.0.1:{port}",
            {
                name: context.Process(target=target, args=(settings, Path(folder), database, port), name=name)
                for name, target in _parts(settings).items()
            },
        )
        try:
            for process in stack.processes.values():
                process.start()
            stack.wait_ready()
            yield stack
        finally:
            stack.stop()


def _parts(settings: StackSettings) -> dict[str, Callable[..., None]]:
    return {"worker": _worker, "api": _api, "jobs": _jobs} if settings.amqp_url else {"serve": _serve}


def _serve(settings: StackSettings, folder: Path, database: str, port: int) -> None:
    from cli.serve import run

    flags = _worker_flags(settings) | {"amqp_url": "", "database_url": database, "data_dir": folder}
    run(ServeSettings(**flags, port=port, max_wait=settings.max_wait), settings.new_engine)


def _worker(settings: StackSettings, folder: Path, database: str, port: int) -> None:
    from cli.worker import run

    run(WorkerCommandSettings(**_worker_flags(settings), amqp_url=settings.amqp_url), settings.new_engine)


def _worker_flags(settings: StackSettings) -> dict[str, Any]:
    return {
        "model": settings.model,
        "max_running": settings.max_running,
        "threads": settings.threads,
        "log_level": "warning",
    }


def _api(settings: StackSettings, folder: Path, database: str, port: int) -> None:
    from cli.api import run

    flags: dict[str, Any] = {"amqp_url": settings.amqp_url, "database_url": database, "log_level": "warning"}
    run(ApiCommandSettings(**flags, port=port, processes=settings.processes, max_wait=settings.max_wait))


def _jobs(settings: StackSettings, folder: Path, database: str, port: int) -> None:
    from cli.jobs import run

    run(JobsSettings(amqp_url=settings.amqp_url, database_url=database, log_level="warning"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _family(pid: int) -> list[int]:
    """A process and its children, by Linux's /proc; those that have ended are left out."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *(int(child) for child in children.read_text().split())] if children.exists() else []


def _cpu_seconds(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    user, system = stat.rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / TICKS


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except FileNotFoundError:
        return 0
    return int(pages) * resource.getpagesize()
