"""The ledger: once, whatever comes twice."""

from __future__ import annotations

import asyncio

import pytest

from api.store import NotFound, Store, StoreRejected, StoreUnavailable, UsageTotal
from schemas.messages import ErrorInfo, Result
from tests.store.databases import Clock, result_of


async def test_a_result_comes_back_whole(store: Store) -> None:
    result = result_of("j", text="né\u0000 ok", prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    assert await store.results.record(result)
    assert await store.results.get("me", "j") == result
    with pytest.raises(NotFound):
        await store.results.get("you", "j")


async def test_a_failure_keeps_its_error(store: Store) -> None:
    error = ErrorInfo(message="too long", param="messages", code="context_length_exceeded")
    await store.results.record(Result(job="j", model="m", outcome="failed", error=error))
    assert (await store.results.get("", "j")).error == error


async def test_a_duplicate_changes_nothing(store: Store) -> None:
    first = result_of("j", text="first", completion_tokens=2)
    assert await store.results.record(first)
    assert not await store.results.record(result_of("j", "failed", completion_tokens=50))
    assert await store.results.get("me", "j") == first
    assert await store.results.usage("me") == [UsageTotal("tiny", 1, 0, 2, 0)]


async def test_duplicates_within_one_transaction_count_once(store: Store) -> None:
    result = result_of("b", prompt_tokens=1)
    new = await store.results.record_many([result, result_of("a", prompt_tokens=1), result, result_of("b")])
    assert new == [True, True, False, False]
    assert await store.results.usage("me") == [UsageTotal("tiny", 2, 2, 0, 0)]


async def test_recorders_racing_over_the_same_results_count_each_once(store: Store) -> None:
    results = [result_of(f"j{number}", prompt_tokens=1) for number in range(60)]
    passes = [results, results[::-1], results[30:] + results[:30]]
    new = await asyncio.gather(*(store.results.record_many(batch) for batch in passes))
    assert sum(map(sum, new)) == 60
    assert await store.results.usage("me") == [UsageTotal("tiny", 60, 60, 0, 0)]


async def test_usage_sums_by_model_owner_and_time(store: Store, clock: Clock) -> None:
    await store.results.record_many(
        [
            result_of("a", prompt_tokens=5, completion_tokens=7, cached_tokens=2),
            result_of("b", "cancelled", prompt_tokens=1),
            result_of("c", prompt_tokens=100, owner="you"),
            Result(job="d", model="other", outcome="completed", owner="me"),
        ]
    )
    assert await store.results.usage("me") == [UsageTotal("other", 1, 0, 0, 0), UsageTotal("tiny", 2, 6, 7, 2)]
    assert [total.prompt_tokens for total in await store.results.usage()] == [0, 106]
    assert await store.results.usage("me", until=clock.now) == []
    assert await store.results.usage("me", since=clock.now + 1) == [UsageTotal("tiny", 2, 6, 7, 2)]


@pytest.mark.parametrize("tokens", [2**63, -(2**80)])
async def test_values_that_no_column_holds_are_refused_and_nothing_is_kept(store: Store, tokens: int) -> None:
    with pytest.raises(StoreRejected):
        await store.results.record_many([result_of("good"), result_of("bad", prompt_tokens=tokens)])
    assert await store.results.usage() == []


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.ping()


async def test_a_database_that_does_not_answer_is_unavailable() -> None:
    store = Store("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.close()
