"""Background responses through the real worker and engine, whatever dies: read on elsewhere, they are the same."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import api.response_api.runs
from api.app import create_app
from api.settings import ApiSettings
from api.store import StoreUnavailable
from broker.base import Broker
from schemas.topology import topology
from tests.delivery.service import TIMEOUT, Service
from tests.front.harness import MODEL

RESPONSES = "/v1/responses"
BODY = {"model": MODEL, "input": "the quick brown fox", "max_output_tokens": 24, "ignore_eos": True, "temperature": 0}
BACKGROUND = BODY | {"background": True}
SETTINGS = ApiSettings(discovery_seconds=5.0, hold_seconds=0.2, keep_alive_seconds=0.05)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.response_api.runs, "LOOK_SECONDS", 0.1)


class Process:
    """An api process: the app, and its broker's connection."""

    def __init__(self, app: FastAPI, broker: Broker, http: httpx.AsyncClient) -> None:
        self.app = app
        self.broker = broker
        self.http = http

    async def post(self, body: dict[str, Any], path: str = "", **headers: str) -> Any:
        response = await self.http.post(RESPONSES + path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def get(self, response_id: str) -> Any:
        response = await self.http.get(f"{RESPONSES}/{response_id}")
        assert response.status_code == 200, response.text
        return response.json()

    async def ended(self, response_id: str) -> Any:
        async with asyncio.timeout(TIMEOUT):
            while (found := await self.get(response_id))["status"] in ("queued", "in_progress"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found

    async def events(self, response_id: str, after: int = -1, count: int = 1000) -> list[Any]:
        """Events from the stream of a response, up to `count`."""
        query = {"stream": "true"} | ({} if after < 0 else {"starting_after": str(after)})
        async with self.http.stream("GET", f"{RESPONSES}/{response_id}", params=query) as response:
            return await read(response, count)

    async def create(self, body: dict[str, Any], count: int = 1000) -> list[Any]:
        async with self.http.stream("POST", RESPONSES, json=body | {"stream": True}) as response:
            return await read(response, count)


async def read(response: httpx.Response, count: int) -> list[Any]:
    assert response.status_code == 200
    found: list[Any] = []
    async with asyncio.timeout(TIMEOUT):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == count:
                break
    return found


@asynccontextmanager
async def process(service: Service) -> AsyncIterator[Process]:
    """One over a socket, so that a stream can be left half-way."""
    broker = service._new_broker("api")
    await broker.connect()
    await broker.declare(topology((MODEL,)))
    app = create_app(broker=broker, store=service.store, settings=SETTINGS)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base, timeout=TIMEOUT) as http:
        async with asyncio.timeout(TIMEOUT):
            while MODEL not in {model["id"] for model in (await http.get("/v1/models")).json()["data"]}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        try:
            yield Process(app, broker, http)
        finally:
            server.should_exit = True
            await serving
            await broker.close()


async def killed(dead: Process) -> None:
    """What others see of a process that dies: its connection ends, and it says no more."""
    await dead.broker.close()


async def whole(service: Service) -> tuple[str, list[Any]]:
    """The text and the deltas that nobody disturbs."""
    async with process(service) as one:
        events = await one.create(BODY)
    return events[-1]["response"]["output"][0]["content"][0]["text"], deltas_of(events)


def deltas_of(events: list[Any]) -> list[tuple[int, str]]:
    kind = "response.output_text.delta"
    return [(event["sequence_number"], event["delta"]) for event in events if event["type"] == kind]


def check_whole(events: list[Any], text: str, deltas: list[tuple[int, str]]) -> None:
    """The invariant: all events, each once and in order, saying what they say undisturbed."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert deltas_of(events) == deltas
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text


async def test_a_stream_is_read_on_at_another_process_after_the_first_has_died(service: Service) -> None:
    await service.worker(pace=0.02)
    text, deltas = await whole(service)
    async with process(service) as first, process(service) as second:
        events = await first.create(BACKGROUND, count=8)
        response_id = events[0]["response"]["id"]
        await killed(first)
        events += await second.events(response_id, after=events[-1]["sequence_number"])
        check_whole(events, text, deltas)
        assert await second.get(response_id) == events[-1]["response"]
        assert await second.events(response_id) == events


async def test_a_stream_left_half_way_is_read_on_at_the_same_process(service: Service) -> None:
    await service.worker(pace=0.02)
    text, deltas = await whole(service)
    async with process(service) as one:
        events = await one.create(BACKGROUND, count=7)
        response_id = events[0]["response"]["id"]
        events += await one.events(response_id, after=events[-1]["sequence_number"], count=4)
        events += await one.events(response_id, after=events[-1]["sequence_number"])
        check_whole(events, text, deltas)


async def test_the_job_goes_on_and_is_recorded_when_its_process_dies(service: Service) -> None:
    engine, _ = await service.worker()
    async with process(service) as first:
        response_id = (await first.post(BACKGROUND))["id"]
        await engine.until_added(1)
        await killed(first)
    async with process(service) as second:
        assert (await second.get(response_id))["status"] == "in_progress"
        await engine.play()
        found = await second.ended(response_id)
        assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 24)
        events = await second.events(response_id)
        check_whole(events, found["output"][0]["content"][0]["text"], deltas_of(events))


async def test_a_worker_that_dies_costs_a_follower_a_pause(service: Service) -> None:
    engine, _ = await service.worker()
    async with process(service) as one:
        response_id = (await one.post(BACKGROUND))["id"]
        await engine.until_added(1)
        await engine.step(6)
        events = await one.events(response_id, count=6)
        following = asyncio.create_task(one.events(response_id, after=5))
        await service.worker(pace=0.01)
        await service.kill(0)
        events += await following
        text, deltas = await whole(service)
        check_whole(events, text, deltas)


async def test_two_processes_follow_one_job(service: Service) -> None:
    await service.worker(pace=0.05)
    text, deltas = await whole(service)
    async with process(service) as first, process(service) as second:
        response_id = (await first.post(BACKGROUND))["id"]
        for events in await asyncio.gather(first.events(response_id), second.events(response_id)):
            check_whole(events, text, deltas)


async def test_a_follower_of_a_queued_job_waits_for_it(service: Service) -> None:
    await service.worker(pace=0.01)
    text, deltas = await whole(service)
    async with process(service) as one:
        await service.kill(0)
        response_id = (await one.post(BACKGROUND))["id"]
        following = asyncio.create_task(one.events(response_id))
        await asyncio.sleep(0.2)
        assert not following.done()
        await service.worker(pace=0.01)
        check_whole(await following, text, deltas)


async def test_who_was_told_of_an_end_finds_it_though_no_recorder_runs(service: Service) -> None:
    task, _ = service._parts[0]
    task.cancel()
    await asyncio.wait([task])
    await service.worker(pace=0.0)
    async with process(service) as first, process(service) as second:
        made = await first.post(BODY)
        assert await second.get(made["id"]) == made
        events = await first.create(BODY)
        assert await second.get(events[0]["response"]["id"]) == events[-1]["response"]
        events = await first.create(BACKGROUND)
        assert await second.get(events[0]["response"]["id"]) == events[-1]["response"]
        follow_up = await second.post(BODY | {"previous_response_id": made["id"]})
        assert follow_up["usage"]["input_tokens"] > made["usage"]["input_tokens"]


async def test_a_store_that_is_away_at_the_end_gets_the_result_from_the_recorder(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.worker(pace=0.0)

    async def fail(_: Any) -> bool:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(service.store.results, "record", fail)
    async with process(service) as one:
        made = await one.post(BODY)
        await service.recorded(1)
        assert await one.get(made["id"]) == made


async def test_cancelling_ends_every_stream_though_the_worker_is_gone(service: Service) -> None:
    engine, _ = await service.worker()
    async with process(service) as first, process(service) as second:
        response_id = (await first.post(BACKGROUND))["id"]
        await engine.until_added(1)
        following = asyncio.create_task(first.events(response_id))
        await engine.step(4)
        await service.kill(0)
        assert (await second.post({}, f"/{response_id}/cancel"))["status"] == "cancelled"
        events = await following
        assert events[-1]["response"]["status"] == "cancelled"
        assert (await second.get(response_id))["status"] == "cancelled"


async def test_a_key_finds_its_response_while_it_runs_and_after(service: Service) -> None:
    engine, _ = await service.worker()
    key = {"idempotency-key": "k"}
    async with process(service) as one:
        asked = asyncio.create_task(one.post(BODY, **key))
        await engine.until_added(1)
        again = asyncio.create_task(one.post(BODY, **key))
        await asyncio.sleep(0.1)
        assert not again.done()
        await engine.play()
        first = await asked
        assert await again == first == await one.post(BODY, **key)
        assert len(engine.added) == 1
