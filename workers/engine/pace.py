"""How many tokens a step computes in the time that it takes anyway, learnt from the steps themselves.

A step with hardly any tokens takes as long as it takes to read the weights and to launch the kernels. That time, over what a
token takes in large steps, is the number of tokens up to which a step grows little longer with each.
"""

from __future__ import annotations

WEIGHT = 0.02
"""Of the newest step."""
SMALL, LARGE = 0.25, 2.0
"""Parts of `free_tokens` up to which, and from which on, a step is small or large."""
OUTLIER = 3.0
"""Times the mean so far, beyond which a step counts as no longer: something was compiled, or the machine stood still."""


class Pace:
    """`free_tokens` are `at_first` until both small and large steps have been seen."""

    def __init__(self, at_first: int) -> None:
        self.free_tokens = at_first
        self._small = self._per_token = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long, with nothing else in the way."""
        if tokens <= SMALL * self.free_tokens:
            self._small = _mean(self._small, seconds)
        elif tokens >= LARGE * self.free_tokens:
            self._per_token = _mean(self._per_token, seconds / tokens)
        if self._small and self._per_token:
            self.free_tokens = max(1, round(self._small / self._per_token))


def _mean(before: float, new: float) -> float:
    """Running; `before` is 0 where `new` is the first."""
    return before + WEIGHT * (min(new, OUTLIER * before) - before) if before else new
