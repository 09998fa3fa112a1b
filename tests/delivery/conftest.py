"""The service on the embedded broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.memory import MemoryBroker, MemoryHub
from schemas.messages import Job
from tests.delivery.service import Answer, Service, job


@asynccontextmanager
async def embedded(folder: Path | None = None) -> AsyncIterator[Service]:
    hub = MemoryHub()
    made = Service(lambda _: MemoryBroker(hub), folder)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with embedded(tmp_path) as made:
        yield made


async def undisturbed(asked: Job) -> Answer:
    """The answer to a job that nobody disturbs."""
    async with embedded() as service:
        engine, _ = await service.worker()
        async with service.asked(asked) as answer:
            await engine.until_added(asked.sampling.n)
            await engine.play()
            return await answer


@pytest.fixture
async def whole() -> Answer:
    """The undisturbed answer to `job()`."""
    return await undisturbed(job())
