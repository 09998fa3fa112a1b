"""Who serves what, as workers come, fall silent and leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.errors import ApiError
from api.models import ModelRegistry
from broker.base import Broker
from schemas.messages import Status, encode
from tests.api.stub_worker import StubWorker


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A registry fed by hand, with its clock."""

    def __init__(self, broker: Broker) -> None:
        self.clock = Clock()
        self.registry = ModelRegistry(broker, crash_grace=60, discovery_seconds=0, clock=self.clock)

    async def hear(self, worker: str = "w1", model: str = "m", **fields: Any) -> None:
        status = Status(**{"worker": worker, "model": model, "max_model_len": 100, "vocab_size": 10} | fields)
        await self.registry._on_status(encode(status))

    async def accepts(self, model: str = "m") -> bool:
        with contextlib.suppress(ApiError):
            await self.registry.require(model)
            return True
        return False

    def served(self) -> list[str]:
        return [served.id for served in self.registry.models()]


@pytest.fixture
def watched(broker: Broker) -> Watched:
    return Watched(broker)


async def test_workers_of_one_model_add_up(watched: Watched) -> None:
    await watched.hear("w1", max_model_len=100, running=1, waiting=2, tokens_per_second=5.0, created=7)
    await watched.hear("w2", max_model_len=80, running=3, queued_tokens=9, tokens_per_second=1.5, created=5)
    await watched.hear("w3", "other")
    served = watched.registry.get("m")
    assert (served.workers, served.max_model_len, served.created) == (2, 80, 5)
    assert (served.running, served.waiting, served.queued_tokens, served.tokens_per_second) == (4, 2, 9, 6.5)
    assert watched.served() == ["m", "other"]


async def test_a_silent_worker_is_not_listed_but_waited_for(watched: Watched) -> None:
    await watched.hear()
    watched.clock.now += 9
    assert watched.served() == ["m"]
    watched.clock.now += 2
    assert watched.served() == []
    assert await watched.accepts()
    watched.clock.now += 60
    assert not await watched.accepts()


async def test_a_worker_that_leaves_takes_its_model_along(watched: Watched) -> None:
    await watched.hear()
    await watched.hear(leaving=True)
    assert watched.served() == []
    assert not await watched.accepts()


async def test_a_model_stays_while_another_worker_serves_it(watched: Watched) -> None:
    await watched.hear("w1")
    await watched.hear("w2")
    await watched.hear("w1", leaving=True)
    assert watched.registry.get("m").workers == 1


async def test_an_unknown_model_is_answered_with_those_served(watched: Watched) -> None:
    await watched.hear()
    with pytest.raises(ApiError, match=r"'x' does not exist .* Served: m\.") as caught:
        await watched.registry.require("x")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_malformed_statuses_are_dropped(watched: Watched) -> None:
    await watched.registry._on_status(b"{}")
    assert watched.served() == []


@pytest.fixture
async def started(broker: Broker) -> AsyncIterator[ModelRegistry]:
    registry = ModelRegistry(broker, discovery_seconds=5)
    await registry.start()
    yield registry
    await registry.close()


async def test_workers_that_were_there_first_are_found(worker: StubWorker, started: ModelRegistry) -> None:
    await started.require("stub")
    assert started.get("stub").max_model_len == 512


async def test_a_model_that_comes_as_time_is_up(broker: Broker) -> None:
    registry = ModelRegistry(broker, discovery_seconds=0.05)
    await registry.start()
    async with registry._changed:  # a busy moment: what has come is there, and nobody has been told
        asking = asyncio.create_task(registry.require("m"))
        await asyncio.sleep(0)
        status = Status(worker="w1", model="m", max_model_len=100, vocab_size=10)
        hearing = asyncio.create_task(registry._on_status(encode(status)))
        await asyncio.wait([asking])
    await asking
    await hearing
    await registry.close()
