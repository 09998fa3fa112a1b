"""Idempotency keys: one request a key, claimed by one, lapsing and expiring."""

from __future__ import annotations

import asyncio

from api.store import Store
from api.store.idempotency import KEPT, LEASE
from tests.store.databases import Clock, result_of


async def test_the_first_claims_and_the_others_learn_of_it(store: Store) -> None:
    claims = await asyncio.gather(*(store.keys.claim("me", "k", "same", f"id{number}") for number in range(8)))
    assert sum(mine for _, mine in claims) == 1
    assert len({record.object_id for record, _ in claims}) == 1
    assert await store.keys.get("me", "k") == claims[0][0]


async def test_keys_are_their_owners(store: Store) -> None:
    assert (await store.keys.claim("me", "k", "a", "mine"))[1]
    assert (await store.keys.claim("you", "k", "b", "yours"))[1]
    assert await store.keys.get("they", "k") is None


async def test_another_request_under_the_key_is_told_apart(store: Store) -> None:
    await store.keys.claim("me", "k", "one", "id1")
    record, mine = await store.keys.claim("me", "k", "other", "id2")
    assert (record.fingerprint, record.object_id, mine) == ("one", "id1", False)


async def test_a_claim_that_lapses_is_taken_over_under_its_id(store: Store, clock: Clock) -> None:
    await store.keys.claim("me", "k", "one", "id1")
    clock.now += LEASE - 1
    assert not (await store.keys.claim("me", "k", "one", "id2"))[1]
    clock.now += 2
    assert await store.keys.get("me", "k") is None
    record, mine = await store.keys.claim("me", "k", "one", "id2")
    assert (record.object_id, mine) == ("id1", True)
    clock.now += LEASE + 1
    record, mine = await store.keys.claim("me", "k", "other", "id3")
    assert (record.object_id, record.fingerprint, mine) == ("id3", "other", True)


async def test_what_is_accepted_is_kept_for_a_day(store: Store, clock: Clock) -> None:
    record, _ = await store.keys.claim("me", "k", "one", "id1")
    await store.keys.accept(record)
    clock.now += KEPT - 1
    kept, mine = await store.keys.claim("me", "k", "one", "id2")
    assert (kept.object_id, kept.is_accepted, mine) == ("id1", True, False)
    clock.now += 2
    assert (await store.keys.claim("me", "k", "one", "id2"))[0].object_id == "id2"


async def test_what_is_refused_frees_its_key_and_no_other(store: Store) -> None:
    first, _ = await store.keys.claim("me", "k", "one", "id1")
    await store.keys.release(first)
    second, mine = await store.keys.claim("me", "k", "other", "id2")
    assert mine
    await store.keys.release(first)
    assert await store.keys.get("me", "k") == second


async def test_purging_forgets_keys_and_the_outputs_kept_for_them(store: Store, clock: Clock) -> None:
    old, _ = await store.keys.claim("me", "old", "x", "several", jobs=2)
    await store.keys.accept(old)
    await store.results.record_many([result_of(job, text="said") for job in [*old.job_ids, "other"]])
    clock.now += KEPT
    await store.keys.claim("me", "new", "x", "id")
    await store.keys.purge()
    await store.keys.purge()
    assert [len((await store.results.get("me", job)).choices) for job in [*old.job_ids, "other"]] == [0, 0, 1]
    assert await store.keys.get("me", "new") is not None
    clock.now -= 1
    assert await store.keys.get("me", "old") is None
