"""The scheduler alone: blocks are conserved whatever happens, everyone finishes, order holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.messages import SamplingParams
from workers.engine.block_pool import ROOT_HASH, BlockPool, block_hash
from workers.engine.request import Request, RequestState
from workers.engine.scheduler import Scheduler, SchedulerConfig


def make(blocks: int = 16, **changes: int) -> Scheduler:
    base = dict(max_running=4, max_batched_tokens=16, block_size=4, max_model_len=48)
    return Scheduler(SchedulerConfig(**{**base, **changes}), BlockPool(blocks))  # type: ignore[arg-type]


def request(index: int, prompt: int, output: int, priority: int = 0) -> Request:
    tokens = [1 + (token * 7) % 5 for token in range(prompt)]
    return Request(str(index), tokens, SamplingParams(), output, index, priority)


operation = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 24), st.integers(1, 20), st.integers(0, 1)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("step")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(operation, max_size=60), st.integers(12, 40), st.booleans())
def test_blocks_are_conserved_and_everyone_finishes(operations: list[tuple], blocks: int, late: bool) -> None:  # type: ignore[type-arg]
    scheduler = make(blocks)
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
        if late:
            now, under_way = under_way, now
        read(now)
        scheduler.check()

    for op, *arguments in operations:
        if op == "add":
            added.append(request(len(added), *arguments))
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
    scheduler.add(request(0, 4, 2, priority=1))
    scheduler.add(request(1, 4, 2, priority=0))
    scheduled = scheduler.schedule()
    assert scheduled is not None
    assert [r.id for r in scheduled[1]] == ["1"]


def test_batch_is_preempted_for_interactive() -> None:
    scheduler = make(blocks=9)
    scheduler.add(request(0, 12, 20, priority=1))
    scheduler.add(request(1, 12, 20, priority=0))
    for _ in range(40):
        scheduled = scheduler.schedule()
        assert scheduled is not None
        for r in scheduled[1]:
            scheduler.update(r, 1)
        if scheduler.preemptions:
            break
    assert [r.id for r in scheduler.running] == ["1"]


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
