"""The HTTP tier through a real RabbitMQ: answers, resumes, and a lost connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.settings import ApiSettings
from api.store import Store
from bench.services import RabbitMQ
from broker.amqp import AmqpBroker
from broker.base import Broker
from tests.api.sse_reader import events, texts
from tests.api.stub_worker import StubWorker, serving
from tests.api.test_completions import CHAT, chat


@pytest.fixture
async def brokers(amqp_vhost_url: str) -> AsyncIterator[list[Broker]]:
    """Two connections: the api's and the worker's."""
    made = [AmqpBroker(amqp_vhost_url, name=name) for name in ("test-api", "test-worker")]
    for broker in made:
        await broker.connect()
    yield list(made)
    for broker in made:
        await broker.close()


@pytest.fixture
async def worker(brokers: list[Broker]) -> AsyncIterator[StubWorker]:
    async with serving(brokers[1]) as stub:
        yield stub


@pytest.fixture
async def app(brokers: list[Broker], worker: StubWorker, store: Store) -> AsyncIterator[FastAPI]:
    made = create_app(broker=brokers[0], store=store, settings=ApiSettings(discovery_seconds=5.0))
    async with made.router.lifespan_context(made):
        await made.state.services.models.require("stub")
        yield made


async def close_connections(rabbitmq: RabbitMQ) -> None:
    """Close them from the broker's side, in every virtual host."""
    await asyncio.to_thread(rabbitmq.control, "close_all_connections", "--global", "closed by a test")


async def test_answers_errors_and_resumes(http: httpx.AsyncClient, worker: StubWorker) -> None:
    assert (await http.get("/ready")).json() == {"status": "ready"}
    whole = (await http.post(CHAT, json=chat("one two"))).json()
    assert whole["choices"][0]["message"]["content"] == "one two"
    chunks = events((await http.post(CHAT, json=chat("crash b c d", stream=True, n=2))).text)
    assert texts(chunks, 2) == ["crash b c d"] * 2
    assert chunks[-1] == "[DONE]"
    assert (await http.post(CHAT, json=chat("fail", stream=True))).status_code == 400
    samples = (await http.get("/metrics")).text
    assert "headrace_reader_resumes_total 1.0" in samples
    assert 'headrace_queue_ready_messages{queue="headrace.requests.stub.interactive"} 0.0' in samples
    assert worker.cancelled == set()


async def test_the_service_comes_back_with_its_connection(
    http: httpx.AsyncClient, worker: StubWorker, rabbitmq: RabbitMQ
) -> None:
    await close_connections(rabbitmq)
    async with asyncio.timeout(30):
        while (await http.post(CHAT, json=chat("one two"))).status_code != 200:  # noqa: ASYNC110 - as a client retries
            await asyncio.sleep(0.1)
    chunks = events((await http.post(CHAT, json=chat("one two", stream=True))).text)
    assert texts(chunks) == ["one two"]
