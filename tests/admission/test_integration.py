"""Overload and a blocked broker, over HTTP on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.settings import ApiSettings
from api.store import Store
from bench.services import RabbitMQ
from broker.amqp import AmqpBroker
from broker.base import Message
from tests.admission.paced import paced
from tests.api.conftest import store  # noqa: F401 (a fixture)
from tests.api.stub_worker import serving

CHAT = "/v1/chat/completions"
RATE = 40.0
MAX_WAIT = 3.0
REFUSED = 60


class HastyBroker(AmqpBroker):
    """Waits half a second for a confirmation, as a test has no time."""

    async def publish(self, exchange: str, routing_key: str, message: Message, **options: Any) -> None:
        await super().publish(exchange, routing_key, message, **{"timeout": 0.5} | options)


@asynccontextmanager
async def connected(url: str, kind: type[AmqpBroker] = AmqpBroker) -> AsyncIterator[AmqpBroker]:
    broker = kind(url, name="test")
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def served(
    url: str,
    store: Store,  # noqa: F811
    model: str,
    kind: type[AmqpBroker] = AmqpBroker,
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """One api process, as it were."""
    async with connected(url, kind) as broker:
        app = create_app(broker=broker, store=store, settings=ApiSettings(max_wait=MAX_WAIT, discovery_seconds=5.0))
        async with app.router.lifespan_context(app):
            await app.state.services.models.require(model)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=60
            ) as client:
                yield app, client


def body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


@dataclass
class Outcome:
    """One client's attempts: the status of each, and what it was told to wait."""

    statuses: list[int] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


async def ask(clients: list[httpx.AsyncClient], number: int, outcome: Outcome) -> None:
    """Come now, and once more exactly when told."""
    for _ in range(2):
        response = await random.choice(clients).post(CHAT, json=body("paced", f"request {number}"))
        outcome.statuses.append(response.status_code)
        if response.status_code != 429 or "retry-after" not in response.headers:
            break
        outcome.waits.append(response.headers["retry-after"])
        await asyncio.sleep(int(outcome.waits[-1]))


async def overload(clients: list[httpx.AsyncClient]) -> list[Outcome]:
    """Clients come at five times the rate until some have been refused, however long a slow machine takes for that."""
    outcomes: list[Outcome] = []
    async with asyncio.TaskGroup() as asking, asyncio.timeout(200):
        for gap in gaps(5 * RATE):
            await asyncio.sleep(gap)
            outcomes.append(Outcome())
            asking.create_task(ask(clients, len(outcomes), outcomes[-1]))
            if sum(bool(outcome.waits) for outcome in outcomes) >= REFUSED:
                return outcomes
    raise AssertionError("unreachable: arrivals never end")


def gaps(rate: float) -> Iterator[float]:
    """Seconds between random arrivals."""
    draw = random.Random(0)
    while True:
        yield draw.expovariate(rate)


async def test_five_times_too_much(amqp_vhost_url: str, store: Store) -> None:  # noqa: F811
    """Nothing accepted is lost, the queue stays short, and who waits as told gets in."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(
            paced(await stack.enter_async_context(connected(amqp_vhost_url)), RATE)
        )
        apis = [await stack.enter_async_context(served(amqp_vhost_url, store, "paced")) for _ in range(2)]
        clients = [client for _, client in apis]
        tracemalloc.start()
        try:
            outcomes = await overload(clients)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        metrics = (await clients[0].get("/metrics")).text
    told = [outcome for outcome in outcomes if outcome.waits]
    assert all(1 <= int(wait) <= 120 for outcome in told for wait in outcome.waits)
    admitted = [outcome for outcome in told if outcome.statuses == [429, 200]]
    assert len(admitted) >= 0.9 * len(told)
    assert {status for outcome in outcomes for status in outcome.statuses} == {200, 429}
    assert len(worker.served) == len(set(worker.served)) == sum(outcome.statuses[-1] == 200 for outcome in outcomes)
    assert worker.longest <= 2 * MAX_WAIT * RATE
    assert peak < 64 << 20
    assert 'headrace_admissions_total{decision="returned",model="paced"}' in metrics
    assert 'headrace_admission_wait_seconds{model="paced"}' in metrics


async def test_a_blocked_broker_is_a_503_and_its_late_delivery_is_cancelled(
    amqp_vhost_url: str,
    rabbitmq: RabbitMQ,
    store: Store,  # noqa: F811
) -> None:
    async with (
        connected(amqp_vhost_url) as broker,
        serving(broker) as worker,
        served(amqp_vhost_url, store, "stub", HastyBroker) as (_, client),
    ):
        assert (await client.post(CHAT, json=body("stub", "before"))).status_code == 200
        await asyncio.to_thread(rabbitmq.raise_memory_alarm)
        try:
            for text in ("hang", "never"):  # the first waits for its confirmation, the second is refused at once
                async with asyncio.timeout(2):
                    refused = await client.post(CHAT, json=body("stub", text))
                error = refused.json()["error"]
                assert (refused.status_code, error["code"], error["type"]) == (
                    503,
                    "broker_unavailable",
                    "server_error",
                )
                assert 1 <= int(refused.headers["retry-after"]) <= 120
            assert len(worker.jobs) == 1
        finally:
            await asyncio.to_thread(rabbitmq.clear_memory_alarm)
        await worker.until_cancelled()
        await worker.until_jobs(2)
        late = [job for job in worker.jobs.values() if job.messages and job.messages[0]["content"] == "hang"]
        assert {job.id for job in late} == worker.cancelled
        assert (await client.post(CHAT, json=body("stub", "after"))).status_code == 200
        assert len(worker.jobs) == 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(4)
