"""One job after another through a worker: what the reader gets, what is recorded, what is acknowledged when."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker.base import BrokerUnavailable, Message
from schemas.messages import MAX_PRIORITY, Usage
from schemas.topology import MAX_ATTEMPTS, RESULTS
from tests.front.harness import EOS, REPLY, TOKENIZER, Bench, WorkerBroker, ids
from workers.front import suspects
from workers.front.defaults import SamplingDefaults
from workers.front.job_run import stable_seed
from workers.front.running import PRIORITY
from workers.front.worker import EngineDiedError, prefetch


async def test_a_streamed_job(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.play()
    result = await bench.reader.result("j1")
    assert bench.reader.texts["j1", 0] == REPLY
    assert bench.reader.tokens["j1", 0] == [*ids(REPLY), EOS]
    assert bench.reader.finish["j1", 0] == "stop"
    assert (result.outcome, result.choices, result.worker) == ("completed", [], "w1")
    prompt = len(ids("hello world"))
    assert result.usage == Usage(prompt_tokens=prompt, completion_tokens=len(ids(REPLY)) + 1, cached_tokens=2)
    await bench.settle()
    assert bench.unsettled == 0
    assert [recorded.choices for recorded in bench.results.results] == [[]]


async def test_one_frame_per_step_and_reader(bench: Bench) -> None:
    engine, _ = await bench.worker()
    for name in ("a", "b", "c"):
        await bench.submit(bench.job(name))
    await engine.until_running(3)
    await engine.step(2)
    await bench.settle()
    assert [[delta.job for delta in frame.deltas] for frame in bench.reader.frames] == [["a", "b", "c"]] * 2


async def test_a_job_that_is_not_streamed_comes_whole(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(stream=False, sampling={"logprobs": 1}))
    await engine.until_running(1)
    await engine.play()
    result = await bench.reader.result("j1")
    (choice,) = result.choices
    assert (choice.text, choice.finish_reason) == (REPLY, "stop")
    assert [position.sampled.logprob for position in choice.logprobs or []] == [-0.5] * len(choice.token_ids)
    assert not any(frame.deltas for frame in bench.reader.frames)
    assert bench.results.results[0].choices == []


async def test_stored_output_goes_to_the_results_queue(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(reply_to=None, stream=False, store_output=True, job_class="batch"), job_class="batch")
    await engine.until_running(1)
    await engine.play()
    await bench.results.until(1)
    (result,) = bench.results.results
    assert (result.choices[0].text, result.job_class) == (REPLY, "batch")
    assert engine.added[0].priority == PRIORITY["batch"] > MAX_PRIORITY


async def test_choices_are_requests_with_seeds_of_their_own(bench: Bench) -> None:
    engine, _ = await bench.worker("hello")
    await bench.submit(bench.job(sampling={"n": 2, "seed": 2**63 - 1, "stop": ["x"]}))
    await engine.until_running(2)
    assert [request.sampling.seed for request in engine.added] == [2**63 - 1, -(2**63)]
    assert {(request.sampling.n, len(request.sampling.stop), request.priority) for request in engine.added} == {
        (1, 0, 0)
    }
    await engine.play()
    result = await bench.reader.result("j1")
    assert [bench.reader.texts["j1", choice] for choice in (0, 1)] == ["hello", "hello"]
    count = 2 * (len(ids("hello")) + 1)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(ids("hello world")), count)


async def test_a_job_without_a_seed_gets_the_same_one_everywhere(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    assert engine.added[0].sampling.seed == stable_seed("j1")


@pytest.mark.parametrize(("include", "text"), [(False, "the quick"), (True, "the quick 🦀 fo")])
async def test_a_stop_string_ends_the_job(bench: Bench, include: bool, text: str) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(sampling={"stop": [" 🦀 fo"], "include_stop_str_in_output": include}))
    await engine.until_running(1)
    await engine.play()
    result = await bench.reader.result("j1")
    assert (bench.reader.texts["j1", 0], bench.reader.finish["j1", 0]) == (text, "stop")
    assert engine.aborted == [engine.added[0].id]
    assert result.usage.completion_tokens == len(bench.reader.tokens["j1", 0])


async def test_length(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(sampling={"max_tokens": 3}))
    await engine.until_running(1)
    await engine.play()
    await bench.reader.result("j1")
    assert (bench.reader.tokens["j1", 0], bench.reader.finish["j1", 0]) == (ids(REPLY)[:3], "length")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"prompt_token_ids": [len(TOKENIZER)]}, 400, "unknown_token_id"),
        ({"prompt_token_ids": [1] * 200}, 400, "context_length_exceeded"),
        ({"model": "other"}, 404, "model_not_found"),
    ],
)
async def test_an_invalid_job_fails(bench: Bench, fields: dict[str, Any], status: int, code: str) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(**fields))
    result = await bench.reader.result("j1")
    assert result.error is not None
    assert (result.outcome, result.error.status, result.error.code) == ("failed", status, code)
    await bench.settle()
    assert (bench.unsettled, len(bench.results.messages), engine.added) == (0, 1, [])


async def test_an_engine_error_fails_the_job_alone(bench: Bench) -> None:
    engine, _ = await bench.worker("hello")
    await bench.submit(bench.job("bad", sampling={"n": 2}))
    await bench.submit(bench.job("good"))
    await engine.until_running(3)
    engine.fail_next = "out of everything"
    await engine.play()
    bad, good = await bench.reader.result("bad"), await bench.reader.result("good")
    assert bad.error is not None
    assert (bad.outcome, bad.error.status, bad.error.message) == ("failed", 500, "out of everything")
    assert good.outcome == "completed"
    assert "bad/1/0" in engine.aborted


async def test_output_that_cannot_be_taken_fails_the_job_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, worker = await bench.worker("hello")
    await bench.submit(bench.job("bad"))
    await engine.until_running(1)
    monkeypatch.setattr(worker._running.by_id["bad"].choices[0]._text, "_detokenizer", None)
    await bench.submit(bench.job("good"))
    await engine.until_running(2)
    await engine.play()
    assert (await bench.reader.result("bad")).outcome == "failed"
    assert (await bench.reader.result("good")).outcome == "completed"


async def test_cancel(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.step(3)
    await bench.control("cancel", "j1")
    result = await bench.reader.result("j1")
    assert (result.outcome, result.usage.completion_tokens) == ("cancelled", 3)
    assert engine.aborted == ["j1/0/0"]
    await bench.settle()
    assert (bench.unsettled, bench.results.results[0].outcome) == (0, "cancelled")


async def test_cancel_before_the_job_comes(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.control("cancel", "j1")
    await bench.settle()
    await bench.submit(bench.job())
    assert (await bench.reader.result("j1")).outcome == "cancelled"
    assert engine.added == []


async def test_past_its_deadline_a_job_never_runs(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(deadline=time.time() - 1))
    assert (await bench.reader.result("j1")).outcome == "expired"
    assert engine.added == []


async def test_a_deadline_ends_a_running_job(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job(deadline=time.time() + 0.05))
    await engine.until_running(1)
    await engine.step(2)
    result = await bench.reader.result("j1")
    assert (result.outcome, result.usage.completion_tokens) == ("expired", 2)
    assert engine.aborted == ["j1/0/0"]


async def test_a_poison_job_is_given_up(bench: Bench) -> None:
    await bench.submit(bench.job())
    await bench.deliver_in_vain(MAX_ATTEMPTS)
    engine, _ = await bench.worker()
    result = await bench.reader.result("j1")
    assert result.error is not None
    assert (result.outcome, result.error.status, result.error.type) == ("failed", 500, "server_error")
    await bench.dead.until(1)
    assert bench.dead.messages[0].headers["reason"] == f"gave up after {MAX_ATTEMPTS} attempts"
    await bench.settle()
    assert (engine.added, bench.unsettled) == ([], 0)


async def test_a_poison_job_does_not_take_others_with_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker dies as soon as the poison is in its engine; six more jobs are always there with it."""
    monkeypatch.setattr(suspects, "SPREAD_SECONDS", 0.02)
    innocent = [f"innocent-{number}" for number in range(6)]
    for name in [*innocent[:3], "poison", *innocent[3:]]:
        await bench.submit(bench.job(name, stream=False))
    for number in range(MAX_ATTEMPTS):
        engine, _ = await bench.worker("hello")
        while not any(request.id.startswith("poison/") for request in engine.added):
            await engine.until_running(1)
            await engine.play()
        await bench.kill(number)
    await bench.worker()
    assert (await bench.reader.result("poison")).outcome == "failed"
    assert {name: bench.reader.results[name].outcome for name in innocent} == dict.fromkeys(innocent, "completed")
    assert max(bench.reader.results[name].epoch for name in innocent) < MAX_ATTEMPTS - 2


async def test_a_malformed_job_with_an_id_fails(bench: Bench) -> None:
    await bench.worker()
    body = b'{"id": "j1", "model": "m", "prompt": 7, "reply_to": "%s"}' % bench.reader.queue.encode()
    await bench.submit(body)
    result = await bench.reader.result("j1")
    assert result.error is not None
    assert "$.prompt" in result.error.message
    await bench.settle()
    assert (bench.results.results[0].job, bench.dead.messages[0].body, bench.unsettled) == ("j1", body, 0)
    assert "$.prompt" in str(bench.dead.messages[0].headers["reason"])


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"model": "m"}', b'{"id": "", "model": "m"}'])
async def test_a_body_without_an_id_is_dead_lettered(bench: Bench, body: bytes) -> None:
    await bench.worker()
    await bench.submit(body)
    await bench.dead.until(1)
    assert (bench.dead.messages[0].body, bench.unsettled, bench.results.messages) == (body, 0, [])


async def test_a_second_copy_waits_for_the_first(bench: Bench) -> None:
    engine, _ = await bench.worker("hello")
    await bench.submit(bench.job())
    await bench.submit(bench.job())
    await engine.until_running(1)
    await bench.settle()
    assert (len(engine.added), bench.unsettled) == (1, 2)
    await engine.play()
    await bench.reader.result("j1")
    await bench.settle()
    assert (bench.unsettled, len(bench.results.messages)) == (0, 1)


class FailingBroker(WorkerBroker):
    """Confirms no Result until told to."""

    confirms = False

    async def publish(self, exchange: str, routing_key: str, message: Message, **options: Any) -> None:
        if exchange == RESULTS and not self.confirms:
            raise BrokerUnavailable("no confirmation")
        await super().publish(exchange, routing_key, message, **options)


async def test_a_job_is_acknowledged_only_after_its_result_is_confirmed(bench: Bench) -> None:
    broker = FailingBroker(bench.new_broker())
    engine, worker = await bench.worker("hello", broker=broker)
    worker._results._first_delay = 0.01
    await bench.submit(bench.job())
    await bench.submit(bench.job("other"))
    await engine.until_running(2)
    await engine.play()
    await bench.reader.until(lambda: bench.reader.finish.get(("other", 0)) == "stop")
    await asyncio.sleep(0.05)
    assert (bench.unsettled, bench.reader.results, bench.results.messages) == (2, {}, [])
    broker.confirms = True
    assert (await bench.reader.result("j1")).outcome == "completed"
    await bench.reader.result("other")
    await bench.settle()
    assert (bench.unsettled, len(bench.results.messages)) == (0, 2)


class MuteBroker(WorkerBroker):
    """Loses the first frame with a Result."""

    dropped = 0

    async def publish(self, exchange: str, routing_key: str, message: Message, **options: Any) -> None:
        if exchange == "" and b'"results"' in message.body and not self.dropped:
            self.dropped += 1
            raise BrokerUnavailable("the frame was lost")
        await super().publish(exchange, routing_key, message, **options)


async def test_a_job_whose_reader_could_not_be_told_is_delivered_again(bench: Bench) -> None:
    engine, worker = await bench.worker("hello", broker=MuteBroker(bench.new_broker()))
    worker._frames._patience = 0.0
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.play()
    result = await bench.reader.result("j1")
    assert (result.epoch, bench.reader.texts["j1", 0], len(engine.added)) == (1, "hello", 1)
    await bench.settle()
    assert bench.unsettled == 0


async def test_drain_finishes_what_runs_and_takes_nothing_new(bench: Bench) -> None:
    engine, worker = await bench.worker("hello")
    await bench.submit(bench.job())
    await engine.until_running(1)
    draining = asyncio.create_task(worker.drain(5.0))
    await bench.settle()
    assert bench.statuses[-1].leaving
    await bench.submit(bench.job("late"))
    await engine.play()
    await draining
    await bench.serving()
    assert (await bench.reader.result("j1")).outcome == "completed"
    assert (await bench.ready(), engine.closed, len(engine.added)) == (1, True, 1)


async def test_drain_gives_back_what_does_not_end_in_time(bench: Bench) -> None:
    engine, worker = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    await worker.drain(0.02)
    assert (await bench.ready(), bench.results.messages, engine.aborted) == (1, [], ["j1/0/0"])


async def test_a_dead_engine_ends_the_worker_and_gives_its_jobs_back(bench: Bench) -> None:
    engine, _ = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    engine.died.set_result("out of memory")
    with pytest.raises(EngineDiedError, match="out of memory"):
        await bench.serving()
    assert (await bench.ready(), bench.results.messages) == (1, [])


async def test_status_is_announced_at_the_start_and_on_request(bench: Bench) -> None:
    engine, _ = await bench.worker(sampling_defaults=SamplingDefaults({"temperature": 0.6}))
    await bench.settle()
    (status,) = bench.statuses
    assert (status.worker, status.model, status.max_model_len, status.max_running) == ("w1", "m", 200, 4)
    assert (status.sampling_defaults, status.has_chat_template) == ({"temperature": 0.6}, True)
    await bench.submit(bench.job(sampling={"max_tokens": 10, "n": 2}))
    await engine.until_running(2)
    await engine.step()
    await bench.control("announce")
    await bench.settle()
    assert bench.statuses[-1].running == 2
    assert bench.statuses[-1].queued_tokens == len(ids("hello world")) + 20


async def test_an_engine_without_requests_is_announced_as_idle(bench: Bench) -> None:
    engine, worker = await bench.worker()
    await bench.submit(bench.job())
    await engine.until_running(1)
    await engine.step()
    await bench.control("cancel", "j1")
    await bench.reader.result("j1")
    await bench.settle()
    busy = worker._running.busy_seconds
    await bench.control("announce")
    await bench.settle()
    assert (bench.statuses[-1].running, bench.statuses[-1].queued_tokens) == (0, 0)
    await engine.step()
    assert worker._running.busy_seconds == busy > 0


async def test_status_is_repeated(bench: Bench) -> None:
    await bench.worker(status_interval=0.01)
    async with asyncio.timeout(60):
        while len(bench.statuses) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_batch_work_is_prefetched_less() -> None:
    assert prefetch(256) == {"interactive": 512, "batch": 320}
    assert prefetch(1) == {"interactive": 2, "batch": 2}
