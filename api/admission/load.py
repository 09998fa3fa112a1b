"""How long a new interactive job of one model would wait, from what workers announce and what the broker holds.

Work is counted in output tokens, as the announced rate is: the time that prompts take is in that rate. Only what waits
counts, not what runs: in a full worker a place becomes free each time that a mean job's tokens have been made.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.messages import Status

FADE = 0.95
"""What is left of a rate at each Status if the worker has become slower. A worker's own mean reaches back ten seconds of
work, and takes as long to tell that it is full; a rate that was reached before is believed at once."""
UNKNOWN_OUTPUT = 256.0
"""Output tokens of a job before any has finished, where more are allowed."""


class Load:
    """Of one model. `allowance` is the wait in seconds that admission allows."""

    def __init__(self, allowance: float) -> None:
        self.slots = 0
        self.depth = 0
        self.since_depth = 0
        self._allowance = allowance
        self._waiting = 0
        self._free = 0
        self._sent: dict[str, float] = {}
        self._full: dict[str, float] = {}
        self._total = 0.0
        self._known = False

    def update(self, workers: Sequence[Status]) -> None:
        """Take in the last Status of each live worker. Without any, what was known stays: they have crashed, will be
        back, and what is accepted meanwhile waits for them."""
        for status in workers:
            if self._sent.get(status.worker) != status.sent:
                self._sent[status.worker] = status.sent
                self._note_rate(status)
        if not workers:
            return
        names = {status.worker for status in workers}
        for gone in self._sent.keys() - names:
            del self._sent[gone]
            self._full.pop(gone, None)
        self.slots = sum(status.max_running for status in workers)
        self._waiting = sum(status.interactive_waiting for status in workers)
        self._free = sum(status.max_running - status.running for status in workers if not status.waiting)
        self._known = self._known or bool(self._full)
        if self._full:
            self._total = len(workers) * sum(self._full.values()) / len(self._full)
        elif not self._known:
            self._total = sum(status.tokens_per_second for status in workers)

    def _note_rate(self, status: Status) -> None:
        """A rate says what a worker can do only while it is full."""
        if status.waiting and status.running + status.waiting >= status.max_running:
            before = self._full.get(status.worker, 0.0)
            self._full[status.worker] = max(status.tokens_per_second, FADE * before)

    def set_depth(self, messages: int) -> None:
        """What the broker's queue holds; what this process adds from now on is counted on top."""
        self.depth = messages
        self.since_depth = 0

    def job_seconds(self, mean_output: float) -> float:
        """Seconds between two places becoming free; 0 where nothing at all is known of the workers.

        As long as no worker has been seen full, its rate is a lower bound; the other is that workers get through the
        jobs which they fetch ahead, one for each slot, within the allowance.
        """
        rate = self._total
        if not self._known:
            rate = max(rate, self.slots * mean_output / self._allowance)
        return mean_output / rate if rate > 0 else 0.0

    def waiting_jobs(self, own: int) -> int:
        """Jobs ahead of a new one. Two lower bounds: the `own` unfinished jobs of this process beyond all slots, exact
        where it is the only one; and what broker and workers say of everyone's, a moment late."""
        coming = max(0, self.since_depth - self._free)
        return max(0, own - self.slots, self.depth + self._waiting + coming)
