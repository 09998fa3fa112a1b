"""Responses: what was asked, joined with how it ended; scoped by owner, cancelled, deleted, purged."""

from __future__ import annotations

from typing import Any

import pytest

from api.store import NotFound, ResponseRecord, Store
from api.store.responses import KEPT, LATE
from tests.store.databases import Clock, result_of


def record(clock: Clock, name: str, previous: str | None = None, **fields: Any) -> ResponseRecord:
    values: dict[str, Any] = {
        "id": f"resp_{name}",
        "owner": "me",
        "job_id": name,
        "previous_id": None if previous is None else f"resp_{previous}",
        "request": {"model": "tiny", "metadata": {"k": "né\u0000"}},
        "input": [{"id": f"msg_{name}", "role": "user"}],
        "created_at": clock.now,
        "deadline": clock.now + 60,
    }
    return ResponseRecord(**values | fields)


async def test_it_comes_back_with_its_result_to_its_owner(store: Store, clock: Clock) -> None:
    made = record(clock, "a")
    await store.responses.create(made)
    assert await store.responses.get("me", "resp_a") == (made, None)
    await store.results.record(result_of("a", text="hi", completion_tokens=2))
    assert await store.responses.get("me", "resp_a") == (made, await store.results.get("me", "a"))
    for call in (store.responses.get, store.responses.cancel, store.responses.delete, store.responses.chain):
        with pytest.raises(NotFound):
            await call("you", "resp_a")


async def test_made_again_it_stays_as_it_is(store: Store, clock: Clock) -> None:
    made = record(clock, "a")
    await store.responses.create(made)
    clock.now += 5
    await store.responses.create(record(clock, "a"))
    assert (await store.responses.get("me", "resp_a"))[0] == made


async def test_a_chain_begins_with_the_first(store: Store, clock: Clock) -> None:
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("fork", "a")):
        await store.responses.create(record(clock, name, previous))
    await store.results.record(result_of("b", text="two"))
    chain = await store.responses.chain("me", "resp_c")
    assert [(turn.job_id, result and result.job) for turn, result in chain] == [("a", None), ("b", "b"), ("c", None)]
    await store.responses.delete("me", "resp_a")
    for name in ("a", "b", "c", "fork"):
        with pytest.raises(NotFound, match="resp_a"):
            await store.responses.chain("me", f"resp_{name}")


async def test_a_chain_does_not_cross_owners(store: Store, clock: Clock) -> None:
    await store.responses.create(record(clock, "a", owner="you"))
    await store.responses.create(record(clock, "b", "a"))
    with pytest.raises(NotFound, match="resp_a"):
        await store.responses.chain("me", "resp_b")


async def test_cancelling_before_the_end_stays_and_after_it_changes_nothing(store: Store, clock: Clock) -> None:
    await store.responses.create(record(clock, "a"))
    await store.responses.create(record(clock, "b"))
    assert (await store.responses.cancel("me", "resp_a"))[0].cancelled_at == clock.now
    clock.now += 5
    assert (await store.responses.cancel("me", "resp_a"))[0].cancelled_at == clock.now - 5
    await store.results.record(result_of("a"))
    await store.results.record(result_of("b"))
    assert (await store.responses.get("me", "resp_a"))[0].cancelled_at is not None
    assert (await store.responses.cancel("me", "resp_b"))[0].cancelled_at is None


async def choices_of(store: Store, job: str) -> int:
    return len((await store.results.get("me", job)).choices)


async def test_deleting_takes_the_output_away_also_of_what_ends_later(store: Store, clock: Clock) -> None:
    for name in ("a", "b", "other"):
        await store.responses.create(record(clock, name))
    await store.results.record_many([result_of("a", text="x"), result_of("other", text="x")])
    await store.responses.delete("me", "resp_a")
    assert await choices_of(store, "a") == 0
    await store.responses.delete("me", "resp_b")
    with pytest.raises(NotFound):
        await store.responses.get("me", "resp_b")
    await store.responses.purge()
    await store.results.record(result_of("b", text="x"))
    assert await choices_of(store, "b") == 1
    await store.responses.purge()
    assert (await choices_of(store, "b"), await choices_of(store, "other")) == (0, 1)
    await store.responses.get("me", "resp_other")


async def test_what_is_too_old_is_dropped(store: Store, clock: Clock) -> None:
    await store.responses.create(record(clock, "ended"))
    await store.results.record(result_of("ended", text="x"))
    clock.now += KEPT - 1
    await store.responses.purge()
    await store.responses.get("me", "resp_ended")
    clock.now += 1
    with pytest.raises(NotFound):
        await store.responses.get("me", "resp_ended")
    await store.responses.purge()
    assert await choices_of(store, "ended") == 0
    await store.responses.create(record(clock, "ended"))  # its row is gone, so that this is a new one
    assert (await store.responses.get("me", "resp_ended"))[0].created_at == clock.now


async def test_a_deleted_response_whose_job_never_ends_is_dropped_at_last(store: Store, clock: Clock) -> None:
    await store.responses.create(record(clock, "a"))
    await store.responses.delete("me", "resp_a")
    clock.now += 60 + LATE + 1
    await store.responses.purge()
    await store.responses.create(record(clock, "a"))
    await store.responses.get("me", "resp_a")
