"""The scheduler alone: blocks are conserved whatever happens, everyone finishes, order holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.messages import SamplingParams
from tests.engine.cache_oracle import CacheOracle
from workers.engine.block_pool import ROOT_HASH, BlockPool, block_hash
from workers.engine.request import Request, RequestState
from workers.engine.scheduler import QUIET_STEPS, Scheduler, SchedulerConfig
from workers.protocol import BATCH_PRIORITY


def make(blocks: int = 16, **changes: object) -> Scheduler:
    base = dict(max_running=4, max_batched_tokens=16, block_size=4, max_model_len=48)
    return Scheduler(SchedulerConfig(**{**base, **changes}), BlockPool(blocks))  # type: ignore[arg-type]


def request(index: int, prompt: int, output: int, priority: int = 0) -> Request:
    tokens = [1 + (token * 7) % 5 for token in range(prompt)]
    return Request(str(index), tokens, SamplingParams(), output, index, priority)


operation = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 24), st.integers(1, 20), st.sampled_from([0, BATCH_PRIORITY])),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("step")),
)


layouts = st.sampled_from([(0,), (0,), (6,), (1,), (0, 6), (0, 0, 9), (0, 4, 4), (3, 11)])


@settings(max_examples=300, deadline=None)
@given(st.lists(operation, max_size=60), st.integers(12, 40), st.booleans(), layouts, st.sampled_from([None, 1, 5]))
def test_blocks_are_conserved_and_everyone_finishes(
    operations: list[tuple],  # type: ignore[type-arg]
    blocks: int,
    late: bool,
    windows: tuple[int, ...],
    batch_step_tokens: int | None,
) -> None:
    """And whatever a token sees is there, before and after preemption, with prefixes that others computed."""
    scheduler = make(blocks * len(windows), windows=windows, batch_step_tokens=batch_step_tokens)
    oracle = CacheOracle(scheduler)
    added: list[Request] = []
    under_way: list[Request] = []

    def read(requests: list[Request]) -> None:
        for r in requests:
            if r.state is not RequestState.FINISHED:
                scheduler.update(r, len(r.output) % 5)
                if len(r.output) == r.max_tokens:
                    scheduler.finish(r)

    def step() -> None:
        nonlocal under_way
        scheduled = scheduler.schedule()
        now: list[Request] = []
        if scheduled is not None:
            plan, now = scheduled
            assert len(plan.decode_slots) + sum(len(row.tokens) for row in plan.prefill) <= 16
            assert plan.num_sampled == len(now)
            oracle.run(plan)
            for r in scheduler.running:
                held = sum(block > 0 for table in r.tables for block in table)
                assert held <= scheduler.tables.most_held(r.num_computed, 16)
        if late:
            now, under_way = under_way, now
        read(now)
        scheduler.check()

    for op, *arguments in operations:
        if op == "add":
            added.append(request(len(added), *arguments))
            oracle.sequences[added[-1].id] = added[-1].prompt + [index % 5 for index in range(arguments[1])]
            scheduler.add(added[-1])
        elif op == "abort" and arguments[0] < len(added) and added[arguments[0]].state is not RequestState.FINISHED:
            scheduler.finish(added[arguments[0]])
        else:
            step()
    for _ in range(3000):
        if not scheduler.requests and not under_way:
            break
        step()
    assert not scheduler.requests
    assert scheduler.pool.num_used == 0


def test_interactive_requests_go_before_batch() -> None:
    scheduler = make(max_running=1)
    scheduler.add(request(0, 4, 2, priority=BATCH_PRIORITY))
    scheduler.add(request(1, 4, 2, priority=0))
    scheduled = scheduler.schedule()
    assert scheduled is not None
    assert [r.id for r in scheduled[1]] == ["1"]


def test_batch_is_preempted_for_interactive() -> None:
    scheduler = make(blocks=9)
    scheduler.add(request(0, 12, 20, priority=BATCH_PRIORITY))
    scheduler.add(request(1, 12, 20, priority=0))
    for _ in range(40):
        scheduled = scheduler.schedule()
        assert scheduled is not None
        for r in scheduled[1]:
            scheduler.update(r, 1)
        if scheduler.preemptions:
            break
    assert [r.id for r in scheduler.running] == ["1"]


def run(scheduler: Scheduler, steps: int) -> list[list[str]]:
    """Steps with their tokens read at once; of each, who got a token."""
    told = []
    for _ in range(steps):
        scheduled = scheduler.schedule()
        told.append([] if scheduled is None else [r.id for r in scheduled[1]])
        for r in [] if scheduled is None else scheduled[1]:
            scheduler.update(r, 1)
            if len(r.output) == r.max_tokens:
                scheduler.finish(r)
    scheduler.check()
    return told


def test_a_full_batch_makes_room_at_once_for_an_interactive_request() -> None:
    """By slots, and by blocks: 24 of 32 tokens are batch requests', and 12 are wanted."""
    for blocks, slots in ((100, 2), (9, 4)):
        scheduler = make(blocks, max_running=slots, prefix_caching=False)
        for index in range(2):
            scheduler.add(request(index, 12, 16, priority=BATCH_PRIORITY))
        run(scheduler, 2)
        scheduler.add(request(9, 12, 2))
        assert "9" in run(scheduler, 1)[0]
        assert scheduler.preemptions == 1
        run(scheduler, 200)
        assert not scheduler.requests


def test_interactive_requests_are_not_preempted_for_others_of_their_class() -> None:
    scheduler = make(100, max_running=1)
    scheduler.add(request(0, 4, 8))
    run(scheduler, 1)
    scheduler.add(request(1, 4, 8, priority=-5))
    assert run(scheduler, 1) == [["0"]]


def test_beside_interactive_requests_a_step_with_batch_work_is_small() -> None:
    scheduler = make(100, batch_step_tokens=6, max_batched_tokens=32)
    scheduler.add(request(0, 2, QUIET_STEPS, priority=0))
    scheduler.add(request(1, 20, 4, priority=BATCH_PRIORITY))
    run(scheduler, 1)
    sizes = []
    while not scheduler.requests["1"].output:
        scheduled = scheduler.schedule()
        assert scheduled is not None
        plan, sampled = scheduled
        assert len(plan.decode_slots) == 1
        sizes.append(sum(len(row.tokens) for row in plan.prefill))
        for r in sampled:
            scheduler.update(r, 1)
    assert sizes == [5, 5, 5, 1]  # 4 were computed beside the interactive prompt


def test_no_batch_work_beside_an_interactive_prompt() -> None:
    scheduler = make(100, batch_step_tokens=6, max_batched_tokens=32)
    scheduler.add(request(0, 4, 20, priority=BATCH_PRIORITY))
    run(scheduler, 2)
    scheduler.add(request(1, 20, 4))
    assert run(scheduler, 2) == [["1"], ["1", "0"]]


def prefill_tokens(scheduler: Scheduler) -> int:
    """Of one step."""
    scheduled = scheduler.schedule()
    assert scheduled is not None
    for r in scheduled[1]:
        scheduler.update(r, 1)
    return sum(len(row.tokens) for row in scheduled[0].prefill)


def test_batch_work_has_the_engine_to_itself_where_nobody_else_comes() -> None:
    scheduler = make(800, batch_step_tokens=6, max_batched_tokens=32, max_model_len=3000, prefix_caching=False)
    scheduler.add(request(0, 1, 1))
    run(scheduler, 1)
    scheduler.add(request(1, 1, 2 * QUIET_STEPS, priority=BATCH_PRIORITY))
    for number, (quiet, tokens) in enumerate(((1, 5), (QUIET_STEPS - 30, 5), (29, 31))):
        run(scheduler, quiet)
        scheduler.add(request(2 + number, 32, 1, priority=BATCH_PRIORITY))
        assert prefill_tokens(scheduler) == tokens


def run_alone(scheduler: Scheduler, added: Request) -> int:
    """To its end; the most blocks it held."""
    scheduler.add(added)
    most = 0
    while scheduler.requests:
        scheduled = scheduler.schedule()
        assert scheduled is not None
        most = max(most, scheduler.pool.num_used)
        for r in scheduled[1]:
            scheduler.update(r, len(r.output) % 5)
            if len(r.output) == r.max_tokens:
                scheduler.finish(r)
    return most


@pytest.mark.parametrize(("windows", "held"), [((0,), 11), ((6,), 6), ((0, 6), 17), ((6, 6), 12)])
def test_a_group_holds_what_its_window_and_a_step_need(windows: tuple[int, ...], held: int) -> None:
    """44 tokens in blocks of 4; the first step computes 16, and of the second the first token sees 5 before it."""
    scheduler = make(blocks=held + 1, windows=windows)
    assert scheduler.longest == (44 if 0 in windows else 48)
    assert run_alone(scheduler, request(0, 24, 20)) <= held == scheduler.tables.most_held(44, 16)
    assert scheduler.preemptions == 0
    assert make(blocks=held, windows=windows).longest < 44


def test_a_prefix_is_found_where_its_end_is_left() -> None:
    """Of a windowed group the last blocks suffice; the others are taken by somebody else in the meantime."""
    scheduler = make(blocks=10, windows=(6,))
    run_alone(scheduler, request(0, 25, 1))
    names = list(scheduler.pool._block_of)
    scheduler.pool.release(scheduler.pool.allocate(5))
    assert len(scheduler.pool.lookup(names)) == 0
    again = request(1, 25, 1)
    run_alone(scheduler, again)
    assert again.num_cached == 24
    scheduler.pool.release(scheduler.pool.allocate(9))
    run_alone(scheduler, other := request(2, 25, 1))
    assert other.num_cached == 0


def test_a_prefix_is_as_long_as_every_group_has_it() -> None:
    scheduler = make(blocks=40, windows=(0, 6))
    run_alone(scheduler, request(0, 25, 1))
    windowed = [name for name in scheduler.pool._block_of if len(name) == 17]
    scheduler.pool._forget(scheduler.pool.find(windowed[5]))
    again = request(1, 25, 1)
    run_alone(scheduler, again)
    assert again.num_cached == 20


def test_freed_blocks_are_found_again_until_taken() -> None:
    pool = BlockPool(4)
    name = block_hash(ROOT_HASH, [1, 2, 3, 4])
    (block,) = pool.allocate(1)
    pool.register(block, name)
    pool.release([block])
    assert pool.lookup([name, b"x"]) == [block]
    pool.allocate(3)
    assert pool.lookup([name]) == []


def test_a_chain_depends_on_everything_before() -> None:
    first, other = block_hash(ROOT_HASH, [1, 2]), block_hash(ROOT_HASH, [2, 1])
    assert block_hash(first, [3, 4]) != block_hash(other, [3, 4])
