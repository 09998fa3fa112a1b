"""x-ratelimit headers: what admission would still take."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.admission import Admission
from api.admission.load import SETTLED, Load
from api.admission.room import Room, duration
from api.errors import ApiError
from schemas.messages import Status
from tests.admission.test_admission import Registry, Time, admission, clock, registry, settings  # noqa: F401 (fixtures)
from tests.api.conftest import app, broker, http, hub, store, worker  # noqa: F401 (fixtures)
from tests.api.test_completions import CHAT, chat

NAMES = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.2501, "251ms"), (1, "1s"), (59.2, "1m0s"), (61, "1m1s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_tokens_are_requests_of_mean_length() -> None:
    headers = Room(limit=10, remaining=4, mean_output=2.5, wait=3).headers()
    assert headers.keys() == NAMES
    assert [headers[f"x-ratelimit-{what}-tokens"] for what in ("limit", "remaining", "reset")] == ["25", "10", "3s"]
    assert headers["x-ratelimit-remaining-requests"] == "4"


async def test_what_remains_is_what_admission_takes(
    admission: Admission,  # noqa: F811
    registry: Registry,  # noqa: F811
    clock: Time,  # noqa: F811
) -> None:
    """Four slots, all taken; a job a second; ten seconds of waiting allowed."""
    for waiting, remaining in ((0, 10), (7, 3), (10, 0), (30, 0)):
        registry.waiting = waiting
        clock.now += 1
        room = admission.room("m")
        assert room is not None
        assert (room.limit, room.remaining, room.wait) == (14, remaining, waiting)
    with pytest.raises(ApiError):
        admission.admit("m", "a")


def test_free_slots_are_those_that_nothing_is_on_its_way_to() -> None:
    load = Load(30)
    assert load.free_slots == 0
    status = Status(worker="w", model="m", max_model_len=9, vocab_size=9, running=1, max_running=4)
    load.update([status])
    assert load.free_slots == 3
    load.since_depth = 2
    assert load.free_slots == 1
    load.set_depth(5)
    assert load.free_slots == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("a")), ("/v1/responses", {"model": "stub", "input": "a"})])
async def test_answers_say_it(
    http: httpx.AsyncClient,  # noqa: F811
    app: FastAPI,  # noqa: F811
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    """The stub worker tells nothing of itself; one that does is told of here."""
    assert not NAMES & set((await http.post(path, json=body)).headers)
    body = {**body, "stream": stream}
    load = app.state.services.admission._state("stub").load
    for sent in range(SETTLED):
        load.update([full_status(sent)])
    app.state.services.admission._state("stub").seen = float("inf")
    response = await http.post(path, json=body)
    assert response.status_code == 200
    assert set(response.headers) >= NAMES
    load.depth = 10_000
    response = await http.post(path, json=body)
    assert response.status_code == 429
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert not NAMES & set((await http.get("/v1/models")).headers)


def full_status(sent: float) -> Status:
    return Status(
        worker="stub-1",
        model="stub",
        max_model_len=512,
        vocab_size=9,
        running=4,
        waiting=1,
        max_running=4,
        tokens_per_second=100.0,
        sent=sent,
    )
