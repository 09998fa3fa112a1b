"""A cache that remembers whose token each place holds: what the device would read, checked against what it should."""

from __future__ import annotations

from workers.engine.plan import StepPlan
from workers.engine.request import Request
from workers.engine.scheduler import Scheduler


class CacheOracle:
    """Runs plans as the device does: writes block tables, then every key of the step, then looks at all that is seen.
    `sequences`: the tokens of each request, those included that only the device knows."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.sequences: dict[str, list[int]] = {}
        self._tables: dict[tuple[int, int, int], int] = {}
        self._kept: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}

    def run(self, plan: StepPlan) -> None:
        for update in plan.block_updates:
            for index, block in enumerate(update.blocks, update.index):
                self._tables[update.group, update.slot, index] = block
        by_slot = {request.slot: request for request in self.scheduler.running}
        spans = [
            (by_slot[slot], by_slot[slot].num_computed - 1, by_slot[slot].num_computed) for slot in plan.decode_slots
        ]
        spans += [(by_slot[row.slot], row.start, row.start + len(row.tokens)) for row in plan.prefill]
        for request, start, stop in spans:
            self._write(request, start, stop)
        for request, start, stop in spans:
            self._look(request, start, stop)

    def _place(self, request: Request, group: int, position: int) -> tuple[int, int]:
        size = self.scheduler.config.block_size
        return self._tables[group, request.slot, position // size], position % size

    def _prefix(self, request: Request, position: int) -> tuple[int, ...]:
        """What keys and values follow from: all tokens so far."""
        return tuple(self.sequences[request.id][: position + 1])

    def _write(self, request: Request, start: int, stop: int) -> None:
        for group in range(len(self.scheduler.config.windows)):
            for position in range(start, stop):
                place = self._place(request, group, position)
                assert place[0] != 0
                self._kept[place] = (group, self._prefix(request, position))

    def _look(self, request: Request, start: int, stop: int) -> None:
        """The step's first query sees the oldest keys, and its last the newest."""
        for group, window in enumerate(self.scheduler.config.windows):
            for position in range(max(0, start - window + 1) if window else 0, stop):
                assert self._kept[self._place(request, group, position)] == (group, self._prefix(request, position))
