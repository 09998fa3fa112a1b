"""On a real RabbitMQ: it is restarted, it cuts connections, it loses patience. Streams go on; nothing is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bench.services import RabbitMQ
from broker.amqp import AmqpBroker
from schemas.messages import Job
from tests.delivery.conftest import undisturbed
from tests.delivery.service import Answer, Service, check_same, job

PACE = 0.03
"""Seconds a step: the jobs, of 80 tokens and more, are under way when the broker goes."""
STREAMS, WHOLES = 6, 3


@pytest.fixture
async def service(amqp_vhost_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(lambda name: AmqpBroker(amqp_vhost_url, name=f"{name}-{uuid.uuid4().hex[:6]}"), tmp_path)
    await made.start()
    yield made
    await made.close()


def jobs() -> list[Job]:
    """Of three lengths, each with a seed of its own; the last ones not streamed."""
    return [
        job(f"j{number}", stream=number < STREAMS, temperature=1.0, seed=number, max_tokens=80 + 20 * (number % 3))
        for number in range(STREAMS + WHOLES)
    ]


async def trouble(service: Service, make: Callable[[], Awaitable[object]]) -> list[Answer]:
    """The answers to all jobs, while they run on two workers and something happens."""
    for _ in range(2):
        await service.worker(PACE, resume_timeout=2.0)
    answers = [asyncio.create_task(service.ask(asked)) for asked in jobs()]
    async with asyncio.timeout(30):
        while not all(has_begun(service, asked) for asked in jobs() if asked.stream):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await make()
    return await asyncio.gather(*answers)


def has_begun(service: Service, asked: Job) -> bool:
    stream = service.client._streams.get(asked.id)
    return stream is not None and len(stream.position(asked.id)[1][0]) > 5


async def check(service: Service, answers: list[Answer]) -> None:
    """Whole answers, and a ledger that has each job once with the figures that its client has."""
    for asked, answer in zip(jobs(), answers, strict=True):
        check_same(answer, await undisturbed(asked))
        assert (await service.store.results.get("", asked.id)).usage.completion_tokens == asked.sampling.max_tokens
    (total,) = await service.store.results.usage("")
    assert (total.jobs, total.completion_tokens) == (
        len(answers),
        sum(answer.result.usage.completion_tokens for answer in answers),
    )


async def test_the_broker_is_restarted(service: Service, rabbitmq: RabbitMQ) -> None:
    answers = await trouble(service, lambda: asyncio.to_thread(rabbitmq.restart))
    await check(service, answers)
    assert service.client.counters.lost_reply_queues == 1


async def test_the_broker_is_killed(service: Service, rabbitmq: RabbitMQ) -> None:
    async def kill() -> None:
        await asyncio.to_thread(rabbitmq.kill)
        await asyncio.to_thread(rabbitmq.start)

    await check(service, await trouble(service, kill))


def close_connections(rabbitmq: RabbitMQ, name: str) -> None:
    """Close those of one client, from the broker's side."""
    for line in rabbitmq.control("list_connections", "--no-table-headers", "pid", "client_properties").splitlines():
        pid, properties = line.split("\t", 1)
        if f'"{name}-' in properties:
            rabbitmq.control("close_connection", pid, "closed by a test")


@pytest.mark.parametrize("name", ["reader", "w1"])
async def test_one_client_is_cut_off(service: Service, rabbitmq: RabbitMQ, name: str) -> None:
    answers = await trouble(service, lambda: asyncio.to_thread(close_connections, rabbitmq, name))
    await check(service, answers)
    assert service.client.counters.lost_reply_queues == (name == "reader")


async def test_jobs_that_take_longer_than_the_consumer_timeout(service: Service, rabbitmq: RabbitMQ) -> None:
    """The broker closes the channel and delivers all that was on it again. Of 30 minutes and a look each minute by
    default, here of one second and a look each half."""
    evaluate = "application:set_env(rabbit, {}, {})."
    for name, value in (("consumer_timeout", 1_000), ("channel_tick_interval", 500)):
        await asyncio.to_thread(rabbitmq.control, "eval", evaluate.format(name, value))
    try:
        answers = await trouble(service, lambda: asyncio.sleep(0))
    finally:
        for name, value in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            await asyncio.to_thread(rabbitmq.control, "eval", evaluate.format(name, value))
    await check(service, answers)
    assert max(answer.result.epoch for answer in answers) > 0
