"""How long a new interactive job of one model would wait, from what workers announce and what the broker holds.

Work is counted in output tokens, as the announced rate is: the time that prompts take is in that rate. Only what waits
counts, not what runs: in a full worker a place becomes free each time that a mean job's tokens have been made.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.messages import Status

FADE = 0.95
"""What is left of a worker's mean rate at each Status if it has become slower. The rate that a worker tells reaches back
ten seconds of work, and takes as long to show that it is full or has just begun."""
SETTLED = 3
"""Statuses of full workers before their rate is believed: the first tell of prompts more than of tokens."""
UNKNOWN_JOBS = 256
"""Jobs that may wait before the rate is known; more where there are more slots."""
CAUTION = 0.25
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
        self._workers = 0
        self._rate = 0.0
        self._full_seen = 0

    def update(self, workers: Sequence[Status]) -> None:
        """Take in the last Status of each live worker. Without any, what was known stays: they have crashed, will be
        back, and what is accepted meanwhile waits for them."""
        if not workers:
            return
        news = [status for status in workers if self._sent.get(status.worker) != status.sent]
        self._sent = {status.worker: status.sent for status in workers}
        self._workers = len(workers)
        self.slots = sum(status.max_running for status in workers)
        self._waiting = sum(status.interactive_waiting for status in workers)
        self._free = sum(status.max_running - status.running for status in workers if not status.waiting)
        full = [status.tokens_per_second for status in news if _is_full(status)]
        if full:
            self._full_seen += len(full)
            self._rate = max(sum(full) / len(full), FADE * self._rate)

    @property
    def _is_known(self) -> bool:
        return self._full_seen >= SETTLED

    def set_depth(self, messages: int) -> None:
        """What the broker's queue holds; what this process adds from now on is counted on top."""
        self.depth = messages
        self.since_depth = 0

    def job_seconds(self, mean_output: float, *, cautious: bool = False) -> float:
        """Seconds between two places becoming free; 0 where nothing at all is known of the workers.

        Before workers have been seen full for a while, they are taken to get through a good many jobs within the
        allowance: rather a long queue once than a burst refused that they would have had no trouble with. A promise is
        more `cautious`.
        """
        rate = self._workers * self._rate
        if not self._is_known and self.slots:
            jobs = max(self.slots, UNKNOWN_JOBS) * (CAUTION if cautious else 1.0)
            rate = max(rate, jobs * mean_output / self._allowance)
        return mean_output / rate if rate > 0 else 0.0

    @property
    def free_slots(self) -> int:
        """Slots that take a job at once, without those that jobs are on their way to."""
        return max(0, self._free - self.since_depth - self.depth)

    def waiting_jobs(self, own: int) -> int:
        """Jobs ahead of a new one. Two lower bounds: the `own` unfinished jobs of this process beyond all slots, exact
        where it is the only one; and what broker and workers say of everyone's, a moment late."""
        coming = max(0, self.since_depth - self._free)
        return max(0, own - self.slots, self.depth + self._waiting + coming)


def _is_full(status: Status) -> bool:
    """A rate says what a worker can do only while all its slots are taken, or all its memory."""
    return status.waiting > 0 and status.running + status.waiting >= status.max_running
