"""How much more a model takes, as OpenAI's x-ratelimit headers say it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """Of one model, over all clients: requests that may run and wait at once, those of them that may still come, and
    seconds until nobody waits. A request counts as `mean_output` tokens."""

    limit: int
    remaining: int
    mean_output: float
    wait: float

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`."""
        reset = duration(self.wait)
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-limit-tokens": str(round(self.limit * self.mean_output)),
            "x-ratelimit-remaining-tokens": str(round(self.remaining * self.mean_output)),
            "x-ratelimit-reset-tokens": reset,
        }


def duration(seconds: float) -> str:
    """As OpenAI writes one: 250ms, 12s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
