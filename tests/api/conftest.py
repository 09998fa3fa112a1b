"""The app on an in-memory broker and SQLite, with a stub worker; in process, or behind a real server on a free port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.settings import ApiSettings
from api.store import Store
from api.store.migrate import upgrade
from broker.base import Broker
from broker.memory import MemoryBroker, MemoryHub
from schemas.topology import topology
from tests.api.stub_worker import StubWorker, serving

SETTINGS = ApiSettings(
    hold_seconds=5.0,
    keep_alive_seconds=0.05,
    discovery_seconds=0.05,
    probe_timeout=1.0,
    max_body_bytes=1 << 20,
    max_file_bytes=1 << 20,
)


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub()


@asynccontextmanager
async def connected(hub: MemoryHub) -> AsyncIterator[Broker]:
    """A broker connection for the duration of the block, with the topology declared."""
    broker = MemoryBroker(hub)
    await broker.connect()
    await broker.declare(topology())
    try:
        yield broker
    finally:
        await broker.close()


async def known(app: FastAPI, model: str) -> None:
    """Wait until the app has heard of the model, however long that takes on a busy machine."""
    async with asyncio.timeout(60):
        while model not in {served.id for served in app.state.services.models.models()}:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def broker(hub: MemoryHub) -> AsyncIterator[Broker]:
    async with connected(hub) as made:
        yield made


@pytest.fixture
async def worker(hub: MemoryHub) -> AsyncIterator[StubWorker]:
    async with connected(hub) as made, serving(made) as stub:
        yield stub


@pytest.fixture
async def embedder(hub: MemoryHub, app: FastAPI) -> AsyncIterator[StubWorker]:
    """A second worker, whose model `vectors` makes embeddings."""
    async with connected(hub) as made, serving(made, "vectors", "stub-2", dimensions=2) as stub:
        await known(app, "vectors")
        yield stub


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path / 'headrace.db'}"
    await upgrade(url)
    made = Store(url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def settings() -> ApiSettings:
    return SETTINGS


@pytest.fixture
async def app(broker: Broker, worker: StubWorker, store: Store, settings: ApiSettings) -> AsyncIterator[FastAPI]:
    """A running app that knows the worker's model `stub`."""
    made = create_app(broker=broker, store=store, settings=settings)
    async with made.router.lifespan_context(made):
        await known(made, "stub")
        yield made


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


class NotifyingServer(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@pytest.fixture
async def server(broker: Broker, worker: StubWorker, store: Store, settings: ApiSettings) -> AsyncIterator[str]:
    """The base URL of the app behind uvicorn."""
    app = create_app(broker=broker, store=store, settings=settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none", timeout_graceful_shutdown=2)
    running = NotifyingServer(config)
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(60):
        await running.listening.wait()
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    await task
