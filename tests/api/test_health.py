"""/health, /ready and /metrics."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.metrics import JobTimer
from api.store import Store, StoreUnavailable
from broker.base import BrokerUnavailable
from broker.memory import MemoryBroker
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, chat


def values(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def unavailable(*_: Any) -> None:
    raise BrokerUnavailable("connection refused")


async def test_alive_and_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    response = await http.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_not_ready_names_every_reason(
    http: httpx.AsyncClient, worker: StubWorker, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_store(_: Store) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(MemoryBroker, "queue_depth", unavailable)
    monkeypatch.setattr(Store, "ping", no_store)
    app.state.services.models._workers.clear()
    response = await http.get("/ready")
    assert response.status_code == 503
    assert response.json()["reasons"] == [
        "broker: connection refused",
        "store: gone",
        "worker: none is connected",
    ]
    assert response.json()["error"]["code"] == "not_ready"
    assert (await http.get("/health")).status_code == 200
    samples = values((await http.get("/metrics")).text)
    assert samples['headrace_up{service="store"}'] == 0
    assert samples['headrace_up{service="broker"}'] == 0


async def test_metrics_count_what_happened(http: httpx.AsyncClient) -> None:
    await http.post(CHAT, json=chat("a b c", stream=True))
    await http.post(CHAT, json=chat("a b"))
    await http.post(CHAT, json=chat("fail"))
    await http.post(CHAT, json=chat("fail-late b c", stream=True))
    await http.get("/v1/files/some-id")
    await http.get("/no/such/route")
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = values(response.text)
    requests = 'headrace_http_requests_total{method="%s",route="%s",status="%d"}'
    assert samples[requests % ("POST", CHAT, 200)] == 3
    assert samples[requests % ("POST", CHAT, 400)] == 1
    assert samples[requests % ("GET", "/v1/files/{file_id}", 404)] == 1
    assert samples[requests % ("GET", "unknown", 404)] == 1
    assert samples['headrace_answers_total{model="stub",outcome="completed"}'] == 2
    assert samples['headrace_answers_total{model="stub",outcome="failed"}'] == 2
    assert samples['headrace_tokens_total{kind="completion",model="stub"}'] == 5
    assert samples['headrace_time_to_first_token_seconds_count{model="stub"}'] == 2
    assert samples["headrace_jobs_running"] == 0
    assert samples['headrace_model_workers{model="stub"}'] == 1
    assert samples['headrace_queue_ready_messages{queue="headrace.requests.stub.interactive"}'] == 0
    assert samples['headrace_up{service="store"}'] == 1


def test_time_between_tokens(app: FastAPI) -> None:
    metrics = app.state.services.metrics
    with JobTimer(metrics, "timed", choices=1) as timer:
        for count in (1, 0, 2, 3):
            timer.tokens(count)
    samples = values(metrics.render().decode())
    assert samples['headrace_time_to_first_token_seconds_count{model="timed"}'] == 1
    assert samples['headrace_inter_token_seconds_count{model="timed"}'] == 2


async def test_each_app_counts_for_itself(app: FastAPI, http: httpx.AsyncClient, store: Store) -> None:
    await http.get("/health")
    other = create_app(broker=app.state.services.broker, store=store)
    assert b'route="/health"' not in other.state.services.metrics.render()


async def test_openapi_describes_the_service(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "min_p" in schema["properties"]
    assert "/v1/batches/{batch_id}/cancel" in paths
