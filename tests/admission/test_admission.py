"""Admission over HTTP, on the embedded broker: the refusal's shape, the way back in, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.admission import Admission
from api.admission.load import SETTLED
from api.errors import ApiError
from api.settings import ApiSettings
from api.tally import Tally
from broker.base import Broker, BrokerUnavailable, Message
from schemas.messages import Place, Places, Status, encode
from schemas.topology import PLACES, STATUS
from tests.api.conftest import app, broker, http, hub, store, worker  # noqa: F401 (fixtures)
from tests.api.test_completions import CHAT, chat


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(discovery_seconds=0.05, max_wait=10.0)


class Time:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Registry:
    """One worker of the model "m": `waiting` jobs ahead, one a second."""

    def __init__(self) -> None:
        self.waiting = 0
        self.sent = 0.0

    def workers(self) -> list[Status]:
        self.sent += 1
        return [
            Status(
                worker="w",
                model="m",
                max_model_len=9,
                vocab_size=9,
                running=4,
                waiting=4,
                interactive_waiting=self.waiting,
                max_running=4,
                tokens_per_second=256.0,
                sent=self.sent,
            )
        ]


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def started(broker: Broker, registry: Registry, clock: Time) -> Admission:  # noqa: F811
    """One api process's, which knows the rate."""
    made = Admission(broker, registry, Tally(), max_wait=10.0, clock=clock)  # type: ignore[arg-type]
    await made.start()
    for _ in range(SETTLED):
        made._state("m").load.update(registry.workers())
    return made


@pytest.fixture
async def admission(broker: Broker, registry: Registry, clock: Time) -> AsyncIterator[Admission]:  # noqa: F811
    made = await started(broker, registry, clock)
    yield made
    await made.close()


def refused(admission: Admission, key: str) -> int | None:
    with pytest.raises(ApiError) as caught:
        admission.admit("m", key)
    assert (caught.value.status, caught.value.code) == (429, "overloaded")
    return None if caught.value.retry_after is None else int(caught.value.retry_after)


def decisions(admission: Admission) -> dict[str, int]:
    return {decision: count for (_, decision), count in admission.decisions.items()}


async def told(admission: Admission) -> None:
    """Its news has arrived."""
    await admission.tick()
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_wait_decides(admission: Admission, registry: Registry, clock: Time) -> None:
    registry.waiting = 10
    admission.admit("m", "a")
    clock.now += 1
    registry.waiting = 25
    await admission.tick()
    assert refused(admission, "b") == 15
    assert refused(admission, "c") == 16
    assert admission.waits() == {"m": 25.0}
    clock.now += 15
    registry.waiting = 14  # more than ten seconds, less than fifteen
    assert refused(admission, "d") is not None
    admission.admit("m", "b")
    assert decisions(admission) == {"admitted": 1, "refused": 3, "returned": 1}


async def test_a_promise_that_cannot_be_kept_is_counted(admission: Admission, registry: Registry, clock: Time) -> None:
    registry.waiting = 20
    wait = refused(admission, "a")
    assert wait == 10
    clock.now += wait
    registry.waiting = 30  # beyond twice what is allowed
    assert refused(admission, "a") is not None
    assert decisions(admission) == {"refused": 2, "broken_promise": 1}


async def test_too_far_off_is_no_promise(admission: Admission, registry: Registry) -> None:
    registry.waiting = 200
    assert refused(admission, "a") is None
    assert decisions(admission) == {"turned_away": 1}


async def test_places_are_known_at_every_process(
    admission: Admission,
    registry: Registry,
    clock: Time,
    broker: Broker,  # noqa: F811
) -> None:
    other = await started(broker, registry, clock)
    registry.waiting = 20
    assert refused(admission, "a") == 10
    await told(admission)
    assert refused(other, "b") == 11
    clock.now += 11
    registry.waiting = 12
    other.admit("m", "a")
    await told(other)
    assert admission._models["m"].places.promised_jobs == 1
    await other.close()


async def test_news_that_is_none_is_dropped(
    admission: Admission,
    broker: Broker,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    await broker.publish(PLACES, "", Message(b"{}"), confirm=False)
    news = Places(api="other", model="m", promised=[Place("k", 1.0)])
    await broker.publish(PLACES, "", Message(encode(news)), confirm=False)
    await told(admission)
    assert "malformed places" in caplog.text
    assert admission._models["m"].places.promised_jobs == 1


async def test_without_a_broker_it_goes_by_what_it_knew(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(_: str) -> int:
        raise BrokerUnavailable("gone")

    monkeypatch.setattr(admission._broker, "queue_depth", gone)
    for _ in range(3):
        for _ in range(8):
            admission.admit("m", "a")
        await admission.tick()
    assert decisions(admission) == {"admitted": 24}


def status(**fields: Any) -> Message:
    whole = {"worker": "busy", "model": "stub", "max_model_len": 9, "vocab_size": 9, "max_running": 4} | fields
    return Message(encode(Status(**whole)))


async def test_over_http(
    http: httpx.AsyncClient,  # noqa: F811
    app: FastAPI,  # noqa: F811
    broker: Broker,  # noqa: F811
) -> None:
    load = {"running": 4, "waiting": 4, "interactive_waiting": 444, "tokens_per_second": 256.0}
    await broker.publish(STATUS, "", status(**load), confirm=False)
    await told(app.state.services.admission)
    for stream in (False, True):
        response = await http.post(CHAT, json=chat("one two", stream=stream))
        assert response.status_code == 429
        error = response.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "overloaded", None)
        assert 1 <= int(response.headers["retry-after"]) <= 120
    samples = (await http.get("/metrics")).text
    assert 'headrace_admissions_total{decision="refused",model="stub"} 2.0' in samples
    assert 'headrace_admission_wait_seconds{model="stub"}' in samples
    await broker.publish(STATUS, "", status(running=1), confirm=False)
    await told(app.state.services.admission)
    app.state.services.admission._models["stub"].seen = 0.0
    assert (await http.post(CHAT, json=chat("one two"))).status_code == 200
