"""What one job's reader has shown, and when to ask the workers about the rest."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.messages import Delta

QUIET_SECONDS = 5.0
"""A job of which nothing is heard for so long is asked about: nothing else tells of a lost frame that no other follows."""
FIRST_PAUSE = 0.5
MAX_PAUSE = 30.0
"""Seconds between two questions about one job: twice as many each time, for most of these jobs wait in their queue."""
MISSING_PAUSE = 4.0
"""The same where something is known to be missing."""
REPAIR_SECONDS = 120.0
"""For how long what is missing may stay so: a worker may have to load its model first."""


@dataclass(slots=True)
class ReaderCounters:
    """What a reader saw since its start; all only grow."""

    frames: int = 0
    malformed_frames: int = 0
    stale_epochs: int = 0
    repeated_deltas: int = 0
    gaps: int = 0
    repairs: int = 0
    unrepaired: int = 0
    slow_readers: int = 0
    resumes: int = 0
    unknown_jobs: int = 0
    lost_reply_queues: int = 0


class GapError(Exception):
    """A delta that does not begin where the known tokens of its choice end."""


class ShownTokens:
    """The tokens of one job that have reached its reader, by choice; decides what is new."""

    def __init__(self, choices: int, counters: ReaderCounters) -> None:
        self.epoch = 0
        self._tokens: list[list[int]] = [[] for _ in range(choices)]
        self._finished = [False] * choices
        self._gaps: set[int] = set()
        self._counters = counters

    def is_current(self, epoch: int) -> bool:
        """Whether `epoch` is the highest seen; a higher one becomes it. Lower ones come from a worker that has lost the
        job without knowing it yet."""
        if epoch < self.epoch:
            self._counters.stale_epochs += 1
            return False
        self.epoch = epoch
        return True

    def is_new(self, delta: Delta) -> bool:
        """Whether to show `delta`, which then counts as shown.

        Text cannot be cut by tokens, so a delta is new as a whole or known as a whole: a worker that resumes begins
        exactly where the reader stands. Raises GapError for anything else.
        """
        if not self.is_current(delta.epoch):
            return False
        if not 0 <= delta.choice < len(self._tokens):
            raise GapError(f"choice {delta.choice} of {len(self._tokens)}")
        known = self._tokens[delta.choice]
        end = delta.offset + len(delta.token_ids)
        if self._finished[delta.choice] or (delta.offset < len(known) and end <= len(known)):
            self._counters.repeated_deltas += 1
            return False
        if delta.offset != len(known):
            self._gaps.add(delta.choice)
            raise GapError(f"tokens {delta.offset} to {end} of choice {delta.choice} after {len(known)} known ones")
        known.extend(delta.token_ids)
        self._finished[delta.choice] = delta.finish_reason is not None
        self._gaps.discard(delta.choice)
        return True

    @property
    def has_gap(self) -> bool:
        """Whether tokens have come to which those before are missing."""
        return bool(self._gaps)

    @property
    def has_begun(self) -> bool:
        return any(self._tokens)

    @property
    def is_complete(self) -> bool:
        """Whether every choice has been shown to its end."""
        return all(self._finished)

    def lack_end(self) -> None:
        """The job is said to be over: what has not been shown to its end has a gap."""
        self._gaps.update(choice for choice, finished in enumerate(self._finished) if not finished)

    def snapshot(self, epoch: int = 0) -> list[list[int]]:
        """The token ids shown of each choice, for a worker that resumes in `epoch`; what older epochs send from now on
        is stale."""
        self.epoch = max(self.epoch, epoch)
        return [list(tokens) for tokens in self._tokens]


class Inquiry:
    """When to ask about one job next. Times are of the monotonic clock, in seconds."""

    __slots__ = ("_due", "_pause", "heard", "missing", "missing_since")

    def __init__(self, now: float) -> None:
        self.heard = False
        self.missing = ""
        self.missing_since = 0.0
        self._pause = QUIET_SECONDS
        self._due = now + QUIET_SECONDS

    def hurry(self, now: float) -> None:
        """Ask now, and soon again."""
        self._due, self._pause = now, FIRST_PAUSE

    def lost(self, now: float, what: str) -> None:
        """Something is missing. Said again, it changes nothing."""
        if not self.missing:
            self.missing, self.missing_since = what, now
            self.hurry(now)

    def found(self) -> None:
        self.missing, self.heard = "", True

    def is_due(self, now: float) -> bool:
        """Whether to ask now; the next time is then set."""
        if self.heard and not self.missing:
            self.heard, self._pause, self._due = False, QUIET_SECONDS, now + QUIET_SECONDS
        if now < self._due:
            return False
        self._due = now + self._pause
        self._pause = min(2 * self._pause, MISSING_PAUSE if self.missing else MAX_PAUSE)
        return True
