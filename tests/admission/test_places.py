"""Promised places: spaced, recognised, called in once, shared between processes."""

from __future__ import annotations

import math

import pytest

from api.admission.places import EARLY, GRACE, MAX_RETRY_AFTER, PromisedPlaces
from schemas.messages import Place

NOW = 1_800_000_000.0


def promise(places: PromisedPlaces, key: str = "k", *, now: float = NOW, jobs: int = 1, seconds: float = 0.5) -> Place:
    place = places.promise(key, jobs, now=now, opens=now, job_seconds=seconds)
    assert place is not None
    return place


def test_places_are_spaced_by_the_time_that_one_takes() -> None:
    places = PromisedPlaces()
    waits = [promise(places, str(number)).due - NOW for number in range(8)]
    assert waits == [1, 1, 1, 2, 2, 3, 3, 4]


def test_a_request_of_several_jobs_takes_several_places() -> None:
    places = PromisedPlaces()
    promise(places, jobs=20)
    assert promise(places).due == NOW + 10


def test_no_place_is_promised_beyond_what_clients_wait_for() -> None:
    places = PromisedPlaces()
    waits = []
    while (place := places.promise("k", 1, now=NOW, opens=NOW, job_seconds=7.0)) is not None:
        waits.append(place.due - NOW)
    assert max(waits) <= MAX_RETRY_AFTER
    assert len(waits) == math.ceil(MAX_RETRY_AFTER / 7)
    assert places.take("k", NOW + 1) is not None
    assert places.promise("late", 1, now=NOW + 8, opens=NOW + 8, job_seconds=7.0) is not None


def test_a_faster_service_brings_places_nearer() -> None:
    places = PromisedPlaces()
    for _ in range(10):
        promise(places, seconds=10.0)
    assert promise(places, seconds=1.0).due == NOW + 10


def test_a_place_is_taken_once_and_not_before_it_is_due() -> None:
    places = PromisedPlaces()
    place = promise(places)
    assert places.take("k", place.due - EARLY - 0.01) is None
    assert places.take("other", place.due) is None
    assert places.take("k", place.due - EARLY) == place
    assert places.take("k", place.due) is None
    assert places.promised_jobs == 0


def test_requests_alike_have_a_place_each() -> None:
    places = PromisedPlaces()
    made = [promise(places, seconds=2.0) for _ in range(3)]
    assert [places.take("k", place.due) for place in made] == made


def test_a_place_not_called_in_is_given_up() -> None:
    places = PromisedPlaces()
    place = promise(places)
    assert places.take("k", place.due + GRACE + 0.01) is None
    assert places.promised_jobs == 0


@pytest.mark.parametrize("taken", [False, True])
def test_promises_of_another_process_count_here(taken: bool) -> None:
    here, there = PromisedPlaces(), PromisedPlaces()
    place = promise(there, seconds=3.0)
    here.add(place)
    assert promise(here, "mine", seconds=3.0).due == NOW + 3
    if taken:
        assert there.take("k", place.due) == place
        here.drop(place)
    assert here.take("k", place.due) == (None if taken else place)
    here.drop(place)
