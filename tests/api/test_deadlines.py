"""X-Request-Timeout: how long a caller waits, as a deadline of its jobs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from broker.base import Broker, Delivery, Message
from broker.memory import MemoryHub
from schemas.messages import ErrorInfo, Frame, Result, Status, decode, encode
from schemas.messages import Job as JobMessage
from schemas.topology import STATUS, reply_address, request_queue, topology
from tests.api.conftest import connected, known
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, chat


def within(seconds: Any) -> dict[str, str]:
    return {"X-Request-Timeout": str(seconds)}


async def test_the_header_becomes_the_deadline(http: httpx.AsyncClient, worker: StubWorker) -> None:
    for seconds, wanted in (("20", 20), ("1.5", 1.5), ("99999", 1800)):
        await http.post(CHAT, json=chat("one"), headers=within(seconds))
        deadline = list(worker.jobs.values())[-1].deadline
        assert deadline == pytest.approx(time.time() + wanted, abs=1)


@pytest.mark.parametrize("seconds", ["", "soon", "0", "-1", "nan", "inf"])
async def test_a_header_that_is_no_time_is_refused(http: httpx.AsyncClient, worker: StubWorker, seconds: str) -> None:
    response = await http.post(CHAT, json=chat("one"), headers=within(seconds))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", "X-Request-Timeout")
    assert worker.jobs == {}


@pytest.mark.parametrize("stream", [False, True])
async def test_in_time_or_an_error(http: httpx.AsyncClient, worker: StubWorker, stream: bool) -> None:
    response = await http.post(CHAT, json=chat("hang", stream=stream), headers=within(0.05))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (504, "request_timeout", "server_error")
    await worker.until_cancelled()


@pytest.fixture
async def late(hub: MemoryHub) -> AsyncIterator[Broker]:
    """A worker that finds every deadline passed, of the model "late"."""
    async with connected(hub) as broker:

        async def expire(delivery: Delivery) -> None:
            job = decode(JobMessage, delivery.message.body)
            error = ErrorInfo(message="the job's deadline has passed", code="request_timeout", status=408)
            result = Result(job=job.id, model="late", outcome="expired", error=error)
            frame = Message(encode(Frame(worker="w", results=[result])))
            assert job.reply_to is not None
            await broker.publish(*reply_address(job.reply_to), frame, confirm=False)
            await delivery.ack()

        await broker.declare(topology(("late",)))
        await broker.consume(request_queue("late", "interactive").name, expire, prefetch=1)
        yield broker


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_worker_finds_expired_is_the_same_error(
    late: Broker, app: FastAPI, http: httpx.AsyncClient, stream: bool
) -> None:
    status = Status(worker="w", model="late", max_model_len=9, vocab_size=9)
    await late.publish(STATUS, "", Message(encode(status)), confirm=False)
    await known(app, "late")
    response = await http.post(CHAT, json=chat("one", stream=stream) | {"model": "late"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
