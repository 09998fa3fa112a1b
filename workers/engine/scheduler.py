"""Continuous batching: which tokens to compute in the next step, and which blocks hold them.

There is no prefill phase and no decode phase: every request has tokens (`num_tokens`) and progress (`num_computed`), and a
step moves the progress of as many requests as the token budget and the blocks allow. Of each class running requests come
first, so that decodes never wait for prompts; then waiting ones, by arrival. Interactive requests come before the batch
class, which loses slots and blocks to them, and whose part in a step is small where they wait for its end. When blocks run
out the last in that order loses its blocks and is computed again later (preemption by recompute).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from workers.engine.block_pool import BlockPool
from workers.engine.block_tables import BlockTables, Tables
from workers.engine.pace import Pace
from workers.engine.plan import Admission, BlockUpdate, PrefillRow, StepPlan
from workers.engine.request import Request, RequestState
from workers.engine.sharing import order_by_prefix
from workers.protocol import BATCH_PRIORITY


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`watermark_blocks` stay free when a request is admitted, so that the running do not preempt it at once.
    `sharing_tile` is how many neighbouring sequences attention can read shared blocks for at once; 0: it cannot.
    `windows`: of each group of layers, 0 for all keys.
    `batch_step_tokens`: a step with batch requests in it has no more tokens than these while interactive requests come
    too; None: a little more than are computed in the time that a step takes anyway (pace.py; `free_tokens` until that is
    known). Then batch work makes steps little longer, yet leaves little of the device idle. A step with an interactive prompt
    in it has more, and so no batch work."""

    max_running: int
    max_batched_tokens: int
    block_size: int
    max_model_len: int
    prefix_caching: bool = True
    watermark_blocks: int = 0
    sharing_tile: int = 0
    windows: tuple[int, ...] = (0,)
    batch_step_tokens: int | None = None
    free_tokens: int = 160


BATCH_STEP = 1.1
"""Of the tokens that come nearly free. Simulated for an 8B model at 30% of capacity (tests/engine/test_interference.py),
1.0, 1.1 and 1.2 give batch work 94, 96 and 97% of what is left, and add 4, 6 and 9% to the others' p99 time to the first
token."""
QUIET_STEPS = 1000
"""Steps without interactive work after which batch requests have the engine to themselves."""
MAX_SCORED = 512
"""Prompt tokens a step whose log probabilities are computed: their logits take as much memory as a large batch's."""


@dataclass(slots=True)
class _Step:
    """The plan in the making."""

    budget: int
    scorable: int
    decoding: list[Request] = field(default_factory=list)
    prefilling: list[tuple[Request, PrefillRow]] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    block_updates: list[BlockUpdate] = field(default_factory=list)
    max_context: int = 0
    full: bool = False
    """Somebody waits for blocks or a slot: nobody behind may have them."""


class Scheduler:
    """Owns requests, slots and blocks. `schedule` makes a plan and assumes that it is run; `update` takes its outcome."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self.tables = BlockTables(pool, config.block_size, config.windows)
        self.longest = self.tables.longest(config.max_model_len, config.max_batched_tokens)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self._ordered_slots: list[int] = []
        self._ordered: tuple[list[Request], tuple[int, ...]] = ([], ())
        self.pace = Pace(config.free_tokens)
        self._quiet_steps = QUIET_STEPS
        self._free_slots = list(range(config.max_running - 1, -1, -1))

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        insort(self.waiting, request, key=lambda r: r.order)

    def finish(self, request: Request) -> None:
        """Forget the request: finished, cancelled or failed. A step under way may still compute it; nobody reads that."""
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._release(request)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        request.state = RequestState.FINISHED
        self.requests.pop(request.id, None)

    def schedule(self) -> tuple[StepPlan, list[Request]] | None:
        """The next plan and the requests that it samples for, in the plan's order; None where nothing can be computed."""
        step = _Step(budget=self.config.max_batched_tokens, scorable=MAX_SCORED)
        preempted = self.preemptions
        self._schedule_running(step, batch=False)
        if self.preemptions == preempted:
            self._schedule_waiting(step, batch=False)
        self._leave_to_batch(step)
        self._schedule_running(step, batch=True)
        if self.preemptions == preempted and not step.full:
            self._schedule_waiting(step, batch=True)
        if not step.decoding and not step.prefilling:
            return None
        decoding, shared = self._order(step.decoding)
        sampled = decoding + [request for request, row in step.prefilling if row.samples]
        plan = StepPlan(
            decode_slots=[request.slot for request in decoding],
            prefill=[row for _, row in step.prefilling],
            admissions=step.admissions,
            block_updates=step.block_updates,
            max_context=step.max_context,
            shared_blocks=shared,
        )
        return plan, sampled

    def _order(self, decoding: list[Request]) -> tuple[list[Request], tuple[int, ...]]:
        """Decoding requests in the order that serves attention best; worked out again only where the set changed."""
        if not self.config.sharing_tile or not decoding:
            return decoding, ()
        slots = [request.slot for request in decoding]
        if slots != self._ordered_slots:
            self._ordered_slots = slots
            self._ordered = order_by_prefix(decoding, self.config.sharing_tile)
        return self._ordered

    def update(self, request: Request, token: int) -> None:
        """A sampled token reached the host."""
        request.num_pending -= 1
        request.output.append(token)
        if self.config.prefix_caching and request.state is RequestState.RUNNING:
            self._register(request)

    def _leave_to_batch(self, step: _Step) -> None:
        """Cut the budget to what the batch class may have, interactive requests having been served."""
        used = self.config.max_batched_tokens - step.budget
        self._quiet_steps = 0 if used else self._quiet_steps + 1
        if self._quiet_steps < QUIET_STEPS:
            limit = self.config.batch_step_tokens or round(BATCH_STEP * self.pace.free_tokens)
            step.budget = max(0, min(limit, self.config.max_batched_tokens) - used)

    def _schedule_running(self, step: _Step, *, batch: bool) -> None:
        border = _first_of_batch(self.running)
        index, end = (border, len(self.running)) if batch else (0, border)
        while index < min(end, len(self.running)) and step.budget > 0:  # preemption takes from the end
            request = self.running[index]
            count = _at_most(request, request.num_tokens - request.num_computed, step)
            if count > 0 and request.wants_more:
                if not self._make_room(request, count, step):
                    return
                self._plan_tokens(request, count, step)
            index += 1

    def _schedule_waiting(self, step: _Step, *, batch: bool) -> None:
        position = _first_of_batch(self.waiting) if batch else 0
        while position < len(self.waiting) and step.budget > 0:
            request = self.waiting[position]
            if _is_batch(request) != batch:
                return
            if request.num_pending > 0:  # preempted with a token under way: it is read before the request comes back
                position += 1
                continue
            if not self._admit(request, step):
                step.full = True
                return
            self.waiting.remove(request)

    def _admit(self, request: Request, step: _Step) -> bool:
        """Give a waiting request its cached prefix, blocks for its next chunk and a slot, or leave it where it is."""
        hits = self._cached_prefix(request)
        cached = len(hits[0]) * self.config.block_size
        count = _at_most(request, request.num_known - cached, step)
        new_blocks = (self.tables.blocks_for(cached + count) - len(hits[0])) * len(hits)
        if count == 0 or not self._find_place(request, hits, new_blocks):
            return False
        self.tables.share(request, hits)
        request.num_computed = cached
        request.num_cached = max(request.num_cached, min(cached, len(request.prompt)))
        request.slot = self._free_slots.pop()
        request.state = RequestState.RUNNING
        insort(self.running, request, key=lambda r: r.order)
        self.prefix_query_tokens += request.num_known
        self.prefix_hit_tokens += cached
        step.admissions.append(Admission(request.slot, request.sampling, request.prompt, list(request.output)))
        self.tables.extend(request, cached + count)
        step.block_updates += [BlockUpdate(request.slot, 0, list(t), group) for group, t in enumerate(request.tables)]
        self._plan_tokens(request, count, step)
        return True

    def _find_place(self, request: Request, hits: Tables, new_blocks: int) -> bool:
        """Whether there are a slot and blocks; an interactive request takes them from the batch class."""
        while not self._has_place(hits, new_blocks):
            if _is_batch(request) or not self.running or not _is_batch(self.running[-1]):
                return False
            self._preempt(self.running[-1])  # its blocks keep their contents, and so do `hits` until they are shared
        return True

    def _has_place(self, hits: Tables, new_blocks: int) -> bool:
        spare = self.pool.num_free - self.tables.num_unreferenced(hits) - new_blocks
        return bool(self._free_slots) and spare >= (self.config.watermark_blocks if self.running else 0)

    def _plan_tokens(self, request: Request, count: int, step: _Step) -> None:
        start = request.num_computed
        samples = start + count == request.num_tokens and request.wants_more
        if count == 1 and request.last_token_on_device:
            step.decoding.append(request)
        else:
            targets = request.targets(start, start + count)
            step.scorable -= len(targets)
            row = PrefillRow(request.slot, start, request.known_tokens(start, start + count), samples, targets)
            step.prefilling.append((request, row))
        request.num_computed = start + count
        request.last_token_on_device = samples
        request.num_pending += samples
        step.budget -= count
        step.max_context = max(step.max_context, start + count)
        if self.config.prefix_caching:
            self._register(request)

    def _make_room(self, request: Request, count: int, step: _Step) -> bool:
        """Extend the block table for `count` more tokens, preempting others, or in the end the request itself."""
        needed = self.tables.blocks_for(request.num_computed + count)
        if needed <= request.num_blocks:
            return True
        self.tables.drop_unseen(request)
        while self.pool.num_free < (needed - request.num_blocks) * len(self.config.windows):
            victim = self.running[-1]  # the last in order, so not yet part of this step
            self._preempt(victim)
            if victim is request:
                return False
        step.block_updates += self.tables.extend(request, request.num_computed + count)
        return True

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        self.running.remove(request)
        self._release(request)
        request.state = RequestState.WAITING
        insort(self.waiting, request, key=lambda r: r.order)

    def _release(self, request: Request) -> None:
        self._ordered_slots = []
        self.tables.release(request)
        self._free_slots.append(request.slot)
        request.num_computed = 0
        request.slot = -1
        request.last_token_on_device = False

    def _cached_prefix(self, request: Request) -> Tables:
        """Blocks of the longest cached prefix. The last token is always computed, for its logits, and all of a prompt whose
        log probabilities are wanted."""
        if not self.config.prefix_caching or request.wants_scores:
            return [[] for _ in self.config.windows]
        return self.tables.cached_prefix(request, (request.num_known - 1) // self.config.block_size)

    def _register(self, request: Request) -> None:
        """Name the full blocks whose tokens the host knows and whose computation is planned."""
        full = min(request.num_computed, request.num_known) // self.config.block_size
        if full > request.num_registered:
            self.tables.register(request, full)

    def check(self) -> None:
        """Assert that blocks are conserved: what requests hold and what is free is everything."""
        held = {block for request in self.running for table in request.tables for block in table if block}
        assert len(held) == self.pool.num_used
        self.pool.check()


def _is_batch(request: Request) -> bool:
    """Whether it is of the batch class; a job's own priority, added to its class's, is smaller than half of that."""
    return request.priority >= BATCH_PRIORITY // 2


def _first_of_batch(requests: list[Request]) -> int:
    """Index in a list in the requests' order."""
    return bisect_left(requests, (BATCH_PRIORITY // 2, -1), key=lambda request: request.order)


def _at_most(request: Request, count: int, step: _Step) -> int:
    """How many of the request's next `count` tokens this step can compute."""
    count = min(count, step.budget)
    if request.wants_scores and request.num_computed < len(request.prompt) - 1:
        return min(count, step.scorable)
    return count
