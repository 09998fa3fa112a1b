"""The engine in its own process: what is sent arrives in order, and its death is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.messages import SamplingParams
from tests.front import engine_children
from workers.engine.config import EngineConfig
from workers.front.engine_client import EngineStartError, ProcessEngine
from workers.protocol import AddRequest, StepOutput

CONFIG = EngineConfig(model="no/such", max_running=7)


def add(name: str, tokens: list[int]) -> AddRequest:
    return AddRequest(name, tokens, SamplingParams(max_tokens=1))


class Steps:
    """Keeps the steps that come."""

    def __init__(self, engine: ProcessEngine) -> None:
        self.steps: list[StepOutput] = []
        self._changed = asyncio.Event()
        engine.set_handler(self._take)

    async def ids(self, count: int) -> list[str]:
        """Ids of the first `count` outputs."""
        async with asyncio.timeout(20):
            while len(found := [output.id for step in self.steps for output in step.outputs]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found

    def _take(self, step: StepOutput) -> None:
        self.steps.append(step)
        self._changed.set()


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(CONFIG, target=engine_children.echo, close_timeout=0.2)
    assert (await engine.start()).max_running == 7
    yield engine
    had_died = engine.died.done()
    await engine.close()
    assert engine.died.done() == had_died, "an end that was asked for is no death"
    assert engine._process is not None
    assert engine._process.exitcode is not None


async def test_messages_of_one_turn_travel_together_and_in_order(engine: ProcessEngine) -> None:
    steps = Steps(engine)
    engine.add(add("a", [1, 2]))
    engine.abort(["x"])
    engine.add(add("b", [3]))
    assert await steps.ids(3) == ["a", "x", "b"]
    assert len(steps.steps) == 1
    assert steps.steps[0].outputs[0].token_ids == [1, 2]


async def test_large_messages_do_not_block_the_loop(engine: ProcessEngine) -> None:
    steps = Steps(engine)
    prompt = list(range(100, 200)) * 1_000
    for index in range(20):
        engine.add(add(str(index), prompt))
        await asyncio.sleep(0)
    assert await steps.ids(20) == [str(index) for index in range(20)]
    assert all(output.token_ids == prompt for step in steps.steps for output in step.outputs)


async def test_a_dead_process_is_noticed(engine: ProcessEngine) -> None:
    engine.add(add("a", [13]))
    async with asyncio.timeout(20):
        assert await engine.died == "the engine process ended with exit code 7"
    engine.add(add("b", [1]))  # nobody listens, nothing fails


async def test_a_failing_engine_says_why(engine: ProcessEngine) -> None:
    engine.add(add("a", [14]))
    async with asyncio.timeout(20):
        assert await engine.died == "out of memory"


async def test_a_deaf_engine_is_ended(engine: ProcessEngine) -> None:
    engine.add(add("a", [15]))
    await asyncio.sleep(0)


async def test_a_start_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(EngineStartError, match="no model 'no/such'"):
        await ProcessEngine(CONFIG, target=engine_children.fail).start()
    with pytest.raises(EngineStartError, match="ended with exit code 3"):
        await ProcessEngine(CONFIG, target=engine_children.exit_at_once).start()


async def test_a_start_that_takes_too_long() -> None:
    engine = ProcessEngine(CONFIG, target=engine_children.hang, start_timeout=0.1, close_timeout=0.2)
    with pytest.raises(EngineStartError, match="not ready after"):
        await engine.start()


async def test_closing_what_was_not_started() -> None:
    await ProcessEngine(CONFIG).close()


async def test_an_engine_that_still_loads_is_closed_at_once() -> None:
    engine = ProcessEngine(CONFIG, target=engine_children.hang, close_timeout=60.0)
    await engine.spawn()
    async with asyncio.timeout(20):
        await engine.close()
