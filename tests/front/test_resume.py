"""A worker dies in mid-stream: the reader's text is whole, with nothing said twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.base import BrokerUnavailable, Message
from schemas.messages import Control, Job, encode
from schemas.topology import CONTROL, RESULTS
from tests.front.fake_engine import FakeEngine
from tests.front.harness import EOS, REPLY, Bench, TrackedDelivery, WorkerBroker, ids

LENGTH = len(ids(REPLY))


async def killed_after(bench: Bench, steps: int, job: Job) -> FakeEngine:
    """Run `job` on a first worker for some steps, kill that, and start a second one."""
    first, _ = await bench.worker()
    await bench.submit(job)
    await first.until_running(job.sampling.n)
    await first.step(steps)
    await bench.settle()
    await bench.kill()
    second, _ = await bench.worker()
    return second


@pytest.mark.parametrize("steps", [0, 1, *range(4, LENGTH, 7), LENGTH])
async def test_the_stream_goes_on_where_it_stood(bench: Bench, steps: int) -> None:
    engine = await killed_after(bench, steps, bench.job())
    await engine.until_running(1)
    assert engine.added[0].output_token_ids == ids(REPLY)[:steps]
    await engine.play()
    result = await bench.reader.result("j1")
    assert bench.reader.texts["j1", 0] == REPLY
    assert bench.reader.tokens["j1", 0] == [*ids(REPLY), EOS]
    assert (result.outcome, result.epoch, result.worker) == ("completed", 1, "w2")
    assert result.usage.completion_tokens == LENGTH + 1
    await bench.settle()
    assert (bench.unsettled, len(bench.results.messages)) == (0, 1)


@pytest.mark.parametrize("steps", range(1, 8))
async def test_a_stop_string_may_lie_over_the_death(bench: Bench, steps: int) -> None:
    job = bench.job(sampling={"stop": ["fox, café"]})
    engine = await killed_after(bench, steps, job)
    await engine.until_running(1)
    await engine.play()
    await bench.reader.result("j1")
    assert (bench.reader.texts["j1", 0], bench.reader.finish["j1", 0]) == ("the quick 🦀 ", "stop")


async def test_choices_resume_each_for_itself(bench: Bench) -> None:
    engine = await killed_after(bench, 5, bench.job(sampling={"n": 3, "max_tokens": LENGTH}))
    await engine.until_running(3)
    assert [len(request.output_token_ids) for request in engine.added] == [5, 5, 5]
    await engine.play()
    await bench.reader.result("j1")
    assert [bench.reader.texts["j1", choice] for choice in range(3)] == [REPLY] * 3


class UnconfirmedBroker(WorkerBroker):
    """Confirms no Result until told to."""

    confirms = False

    async def publish(self, exchange: str, routing_key: str, message: Message, **options: Any) -> None:
        if exchange == RESULTS and not self.confirms:
            raise BrokerUnavailable("no confirmation")
        await super().publish(exchange, routing_key, message, **options)


@pytest.mark.parametrize("sampling", [{}, {"max_tokens": 4}, {"stop": ["fox"]}])
async def test_what_was_shown_to_its_end_is_not_run_again(bench: Bench, sampling: dict[str, Any]) -> None:
    first, _ = await bench.worker(broker=UnconfirmedBroker(bench.new_broker()))
    await bench.submit(bench.job(sampling=sampling, store_output=True))
    await first.until_running(1)
    await first.play()
    await bench.reader.until(lambda: ("j1", 0) in bench.reader.finish)
    shown = bench.reader.texts["j1", 0]
    await bench.kill()
    second, _ = await bench.worker()
    result = await bench.reader.result("j1")
    assert (second.added, result.outcome, bench.reader.texts["j1", 0]) == ([], "completed", shown)
    assert bench.results.results[0].choices[0].text == shown
    assert result.usage.completion_tokens == len(bench.reader.tokens["j1", 0])


async def test_a_reader_that_does_not_answer_gets_the_result_alone(bench: Bench) -> None:
    bench.reader.answers = False
    engine = await killed_after(bench, 4, bench.job(store_output=True))
    await engine.until_running(1)
    assert engine.added[0].output_token_ids == []
    deltas = sum(len(frame.deltas) for frame in bench.reader.frames)
    await engine.play()
    assert (await bench.reader.result("j1")).outcome == "completed"
    assert sum(len(frame.deltas) for frame in bench.reader.frames) == deltas
    assert bench.results.results[0].choices[0].text == REPLY


@pytest.mark.parametrize("steps", [2, 4, 9])
async def test_a_late_answer_brings_the_stream_back(bench: Bench, steps: int) -> None:
    bench.reader.answers = False
    engine = await killed_after(bench, 4, bench.job())
    await engine.until_running(1)
    await engine.step(steps)
    await bench.reader.say_shown("j1", 1)
    await bench.settle()
    await engine.play()
    await bench.reader.result("j1")
    assert bench.reader.texts["j1", 0] == REPLY


async def test_a_reader_that_cancels_instead_of_answering(bench: Bench) -> None:
    bench.reader.answers = False
    first, _ = await bench.worker()
    await bench.submit(bench.job())
    await first.until_running(1)
    await bench.kill()
    engine, _ = await bench.worker(resume_timeout=60.0)
    await bench.reader.until(lambda: len(bench.reader.queries) == 1)
    await bench.control("cancel", "j1")
    assert (await bench.reader.result("j1")).outcome == "cancelled"
    assert engine.added == []


@pytest.mark.parametrize("shown", [[[100_000]], [[1], [2]]])
async def test_an_impossible_answer_is_no_answer(bench: Bench, shown: list[list[int]]) -> None:
    bench.reader.answers = False
    first, _ = await bench.worker()
    await bench.submit(bench.job())
    await first.until_running(1)
    await bench.kill()
    engine, _ = await bench.worker(resume_timeout=60.0)
    await bench.reader.until(lambda: len(bench.reader.queries) == 1)
    control = Control(kind="resume", job="j1", epoch=1, shown=shown)
    await bench.client.publish(CONTROL, "", Message(encode(control)), confirm=False)
    await engine.until_running(1)
    assert engine.added[0].output_token_ids == []
    await engine.play()
    assert (await bench.reader.result("j1")).outcome == "completed"


async def test_a_job_that_is_not_streamed_starts_over(bench: Bench) -> None:
    engine = await killed_after(bench, 4, bench.job(stream=False))
    await engine.until_running(1)
    assert (engine.added[0].output_token_ids, bench.reader.queries) == ([], [])
    await engine.play()
    assert (await bench.reader.result("j1")).choices[0].text == REPLY


async def test_a_gap_is_repaired_when_the_reader_says_what_it_has(bench: Bench) -> None:
    broker = WorkerBroker(bench.new_broker())
    engine, _ = await bench.worker(broker=broker)
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.step(4)
    await bench.settle()
    broker.silent = True
    await engine.step(5)
    await bench.settle()
    broker.silent = False
    await bench.reader.say_shown("j1", 0)
    await bench.settle()
    await engine.play()
    await bench.reader.result("j1")
    assert bench.reader.texts["j1", 0] == REPLY


async def test_what_the_broker_does_not_take_is_sent_when_it_is_back(bench: Bench) -> None:
    broker = WorkerBroker(bench.new_broker())
    engine, _ = await bench.worker(broker=broker)
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.step(4)
    broker.lost = True
    await engine.play()
    broker.lost = False
    result = await bench.reader.result("j1")
    assert (bench.reader.texts["j1", 0], result.epoch, bench.reader.queries) == (REPLY, 0, [])


class Redelivery:
    """The same job again, as after a lost connection."""

    def __init__(self, job: Job, count: int) -> None:
        self.message = Message(encode(job))
        self.delivery_count = count

    async def ack(self) -> None: ...
    async def reject(self, *, requeue: bool) -> None: ...


async def test_after_a_lost_connection_the_running_job_goes_on(bench: Bench) -> None:
    broker = WorkerBroker(bench.new_broker())
    engine, worker = await bench.worker(broker=broker)
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.step(4)
    await bench.settle()
    broker.silent = True
    await engine.step(5)
    await bench.settle()
    broker.silent = False
    again = TrackedDelivery(Redelivery(bench.job(), 1), broker.unsettled)
    sharing = asyncio.create_task(worker._lifecycle.handle(again))
    await bench.settle()
    await engine.play()
    result = await bench.reader.result("j1")
    await sharing
    assert (bench.reader.texts["j1", 0], result.epoch, len(engine.added)) == (REPLY, 1, 1)
    await bench.settle()
    assert bench.unsettled == 0


async def test_a_job_that_comes_again_while_its_result_waits_ends_in_the_new_epoch(bench: Bench) -> None:
    """The reader has answered the question of the new epoch, so a Result of the old one would be stale."""
    broker = UnconfirmedBroker(bench.new_broker())
    engine, worker = await bench.worker(broker=broker)
    worker._results._first_delay = 0.01
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.play()
    await bench.reader.until(lambda: ("j1", 0) in bench.reader.finish)
    again = TrackedDelivery(Redelivery(bench.job(), 2), broker.unsettled)
    sharing = asyncio.create_task(worker._lifecycle.handle(again))
    await bench.reader.until(lambda: len(bench.reader.queries) == 1)
    broker.confirms = True
    assert (await bench.reader.result("j1")).epoch == 2
    await sharing


async def test_a_job_that_another_worker_has_taken_over_is_left_to_it(bench: Bench) -> None:
    engine, worker = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    control = Control(kind="resume", job="j1", epoch=3, shown=[[]])
    draining = asyncio.create_task(worker.drain(0.0))  # so that it does not get the job again
    await bench.client.publish(CONTROL, "", Message(encode(control)), confirm=False)
    await bench.settle()
    await draining
    assert (engine.aborted, bench.results.messages, await bench.ready()) == (["j1/0/0"], [], 1)
