"""The estimated wait, from what workers announce and what the broker holds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from api.admission.load import FADE, SETTLED, UNKNOWN_JOBS, Load
from api.tally import Tally
from schemas.messages import Job, Result, Status, Usage

_sent = itertools.count(1.0)


def status(worker: str = "w", **fields: Any) -> Status:
    return Status(worker=worker, model="m", max_model_len=512, vocab_size=9, sent=next(_sent), **fields)


def full(rate: float, worker: str = "w", slots: int = 4) -> Status:
    return status(worker, running=slots, waiting=1, max_running=slots, tokens_per_second=rate)


def test_nothing_is_known_without_workers() -> None:
    assert Load(30).job_seconds(100) == 0


def settled(load: Load, *rates: float) -> None:
    """Workers that have been full for a while."""
    for _ in range(SETTLED):
        load.update([full(rate, f"w{number}") for number, rate in enumerate(rates)])


def test_a_full_worker_tells_what_it_can_do() -> None:
    load = Load(30)
    settled(load, 200.0)
    assert load.job_seconds(100) == 0.5


@pytest.mark.parametrize(("slots", "jobs"), [(4, UNKNOWN_JOBS), (600, 600)])
def test_before_that_a_burst_is_taken(slots: int, jobs: int) -> None:
    load = Load(30)
    load.update([status(running=1, max_running=slots, tokens_per_second=10.0)])
    assert load.job_seconds(100) == pytest.approx(30 / jobs)
    assert load.job_seconds(100, cautious=True) == pytest.approx(min(10.0, 120 / jobs))
    for _ in range(SETTLED - 1):
        load.update([full(50.0, slots=slots)])
    assert load.job_seconds(100) == pytest.approx(30 / jobs)
    load.update([full(50.0, slots=slots)])
    assert load.job_seconds(100) == 2.0


def test_a_worker_with_room_does_not_say_what_it_can_do() -> None:
    load = Load(30)
    settled(load, 200.0)
    for _ in range(50):
        load.update([status("w0", running=1, max_running=4, tokens_per_second=5.0)])
    assert load.job_seconds(100) == 0.5


def test_one_status_counts_once_and_a_slower_worker_is_believed_by_and_by() -> None:
    load = Load(30)
    settled(load, 200.0)
    slower = full(100.0, "w0")
    for _ in range(3):
        load.update([slower])
    assert load.job_seconds(100) == pytest.approx(100 / (200 * FADE))
    for _ in range(50):
        load.update([full(100.0, "w0")])
    assert load.job_seconds(100) == 1.0


def test_rates_of_workers_add_up_and_a_new_one_is_taken_for_like_the_others() -> None:
    load = Load(30)
    settled(load, 100.0, 200.0)
    assert load.job_seconds(100) == pytest.approx(1 / 3)
    load.update([status("w0", max_running=4), status("w1", max_running=4), status("new", max_running=4)])
    assert load.job_seconds(100) == pytest.approx(100 / 450)
    load.update([full(0.0, "new")])  # it has just begun
    assert load.job_seconds(100) == pytest.approx(100 / (150 * FADE))


def test_what_was_known_stays_while_workers_are_away() -> None:
    load = Load(30)
    settled(load, 200.0)
    load.update([])
    assert (load.slots, load.job_seconds(100)) == (4, 0.5)
    load.update([status("new", max_running=4)])
    assert load.job_seconds(100) == 0.5


def test_waiting_is_the_larger_of_what_is_known() -> None:
    load = Load(30)
    load.update([status(interactive_waiting=3, running=8, waiting=5, max_running=8)])
    assert load.waiting_jobs(own=5) == 3
    assert load.waiting_jobs(own=20) == 12
    load.set_depth(10)
    load.since_depth += 2
    assert load.waiting_jobs(own=20) == 15
    load.set_depth(0)
    assert load.waiting_jobs(own=0) == 3


def test_jobs_that_find_a_free_slot_do_not_wait() -> None:
    load = Load(30)
    load.update([status("a", running=3, max_running=8), status("b", running=1, waiting=2, max_running=8)])
    load.since_depth = 5
    assert load.waiting_jobs(own=16) == 0
    load.since_depth = 8
    assert load.waiting_jobs(own=16) == 3


def test_the_mean_output_follows_completed_answers() -> None:
    tally = Tally()
    assert tally.mean_output("m", 256.0) == 256.0
    for tokens in (10, 30):
        tally.finished(Result(job="j", model="m", outcome="completed", usage=Usage(completion_tokens=tokens)))
    tally.finished(Result(job="j", model="m", outcome="failed"))
    assert tally.mean_output("m", 256.0) == 20.0
    for _ in range(300):
        tally.finished(Result(job="j", model="m", outcome="completed", usage=Usage(completion_tokens=100)))
    assert tally.mean_output("m", 256.0) == pytest.approx(100, rel=0.01)


def test_running_jobs_are_counted_by_model() -> None:
    tally = Tally()
    jobs = [Job(id=str(number), model="m", prompt="x") for number in range(3)]
    tally.begin(jobs)
    assert (tally.running["m"], tally.running["other"]) == (3, 0)
    tally.end(jobs)
    assert tally.running["m"] == 0


def test_of_embeddings_the_input_is_counted() -> None:
    tally = Tally()
    tally.finished(Result(job="a", model="m", outcome="completed", usage=Usage(prompt_tokens=30)))
    tally.finished(Result(job="b", model="m", outcome="completed", usage=Usage(prompt_tokens=10)))
    assert tally.mean_output("m", 256.0) == 20.0
