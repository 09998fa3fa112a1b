"""The engine's loop at its pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from tests.engine import tiny
from workers.engine.process import EngineLoop
from workers.protocol import (
    AbortRequests,
    AddRequest,
    EngineStats,
    Shutdown,
    StepOutput,
    ToEngine,
    from_engine_decoder,
    to_engine_encoder,
)

pytestmark = pytest.mark.gpu if tiny.DEVICE.type == "cuda" else []
TIMEOUT = 10.0


@pytest.fixture
def front() -> Iterator[Connection]:
    """The front's end of the pipe of a running loop."""
    ours, theirs = Pipe()
    loop = threading.Thread(target=EngineLoop(theirs, tiny.engine(tiny.reference())).run)
    loop.start()
    yield ours
    send(ours, Shutdown())
    loop.join(TIMEOUT)
    assert not loop.is_alive()
    ours.close()
    theirs.close()


def send(front: Connection, *messages: ToEngine) -> None:
    front.send_bytes(to_engine_encoder.encode(list(messages)))


def receive(front: Connection) -> StepOutput:
    assert front.poll(TIMEOUT), "the engine said nothing"
    message = from_engine_decoder.decode(front.recv_bytes())
    assert isinstance(message, StepOutput)
    return message


def until_idle(front: Connection) -> EngineStats:
    while (step := receive(front)).stats.running:
        assert all(output.finish_reason is None for output in step.outputs)
    return step.stats


def test_an_abort_that_leaves_the_engine_idle_is_told(front: Connection) -> None:
    """Nothing steps any more, and yet the front learns that the blocks are free."""
    send(front, tiny.request("a", [5] * 9, max_tokens=200))
    assert receive(front).stats.kv_blocks_used > 0
    send(front, AbortRequests(["a"]))
    assert until_idle(front).kv_blocks_used == 0


def test_what_cannot_run_is_refused_and_the_rest_goes_on(front: Connection) -> None:
    send(front, AddRequest("bad", [999], tiny.request("x", [5]).sampling), tiny.request("good", [5], max_tokens=1))
    outputs = {output.id: output for output in receive(front).outputs}
    assert "999" in (outputs["bad"].error or "")
    assert outputs["good"].finish_reason == "length"
