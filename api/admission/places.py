"""Places promised to refused requests: when each may come again, and who has come."""

from __future__ import annotations

import bisect
import heapq
import math

from schemas.messages import Place

MAX_RETRY_AFTER = 120
"""Seconds. OpenAI's client ignores a longer Retry-After."""
EARLY = 0.5
"""Seconds by which a client may be early: clocks differ."""
GRACE = 10.0
"""Seconds after which a place that nobody has called in is given up."""


class PromisedPlaces:
    """Of one model, over all api processes. Times are Unix seconds.

    A new place lies behind all that are promised, as far as these take to become free at the rate of the moment. A
    request is recognised by its key; several may have the same one, and then any of them takes the place that is due
    first.
    """

    def __init__(self) -> None:
        self.promised_jobs = 0
        self._by_key: dict[str, list[Place]] = {}
        self._by_time: list[tuple[float, str, Place]] = []

    def promise(self, key: str, jobs: int, *, now: float, opens: float, job_seconds: float) -> Place | None:
        """A place for `jobs` jobs, the first of all places being free from `opens` on: in whole seconds from now, at
        least one. None where there is none within MAX_RETRY_AFTER seconds."""
        self._expire(now)
        wait = max(1, math.ceil(opens + self.promised_jobs * job_seconds - now))
        if wait > MAX_RETRY_AFTER:
            return None
        place = Place(key, now + wait, jobs)
        self.add(place)
        return place

    def add(self, place: Place) -> None:
        """Keep a promise, made here or by another process."""
        self.promised_jobs += place.jobs
        bisect.insort(self._by_key.setdefault(place.key, []), place, key=lambda kept: kept.due)
        heapq.heappush(self._by_time, (place.due, place.key, place))

    def take(self, key: str, now: float) -> Place | None:
        """The place of this key that is due, which is then gone."""
        self._expire(now)
        places = self._by_key.get(key)
        if not places or places[0].due - EARLY > now:
            return None
        place = places[0]
        self.drop(place)
        return place

    def drop(self, place: Place) -> None:
        """It is taken, here or at another process, or given up."""
        places = self._by_key.get(place.key, [])
        if place not in places:
            return
        places.remove(place)
        self.promised_jobs -= place.jobs
        if not places:
            del self._by_key[place.key]

    def _expire(self, now: float) -> None:
        while self._by_time and self._by_time[0][0] + GRACE < now:
            self.drop(heapq.heappop(self._by_time)[2])
