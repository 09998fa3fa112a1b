"""Batches as their owner sees them, their leases, and their lines."""

from __future__ import annotations

import pytest

from api.store import BatchError, BatchRecord, LeaseLost, NotCancellable, NotFound, Store
from api.store.records import NewItem
from schemas.messages import ErrorInfo
from tests.store.databases import Clock, chunks, result_of

ERROR = ErrorInfo(message="no", code="invalid_value")


async def create(store: Store, owner: str = "me") -> BatchRecord:
    return await store.batches.create(
        owner, input_file_id="file-1", endpoint="/v1/completions", metadata={"night": "one\u0000"}
    )


def item(batch: BatchRecord, line: int, rejected: ErrorInfo | None = None) -> NewItem:
    return NewItem(line, f"c{line}", f"{batch.id}-{line}", "tiny", message=b'{"x":"\xc3\xa9"}', rejected=rejected)


async def running(store: Store, lines: int = 3) -> BatchRecord:
    batch = await create(store)
    await store.batches.claim("w", 10, 1)
    await store.items.add("w", batch.id, [item(batch, line) for line in range(1, lines + 1)])
    assert await store.batches.begin("w", batch.id, lines)
    return await store.batches.get("me", batch.id)


async def test_a_new_batch_is_validating(store: Store, clock: Clock) -> None:
    batch = await create(store)
    assert (batch.status, batch.completion_window, batch.metadata) == ("validating", "24h", {"night": "one\u0000"})
    assert (batch.created_at, batch.expires_at) == (clock.now, clock.now + 86_400)
    assert (batch.total, batch.completed, batch.failed, batch.errors) == (0, 0, 0, [])
    assert await store.batches.get("me", batch.id) == batch


async def test_a_batch_is_its_owners_alone(store: Store) -> None:
    batch = await create(store)
    with pytest.raises(NotFound):
        await store.batches.get("you", batch.id)
    with pytest.raises(NotFound):
        await store.batches.cancel("you", batch.id)
    assert (await store.batches.list("you")).data == []
    assert (await store.batches.get("me", batch.id)).status == "validating"


async def test_lists_page_newest_first(store: Store) -> None:
    ids = [(await create(store)).id for _ in range(3)]
    page = await store.batches.list("me", limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == ([ids[2], ids[1]], True)
    page = await store.batches.list("me", limit=2, after=ids[1])
    assert ([batch.id for batch in page.data], page.has_more) == ([ids[0]], False)


async def test_cancelling_twice_changes_nothing(store: Store, clock: Clock) -> None:
    batch = await create(store)
    first = await store.batches.cancel("me", batch.id)
    assert (first.status, first.cancelling_at) == ("cancelling", clock.now)
    clock.now += 5
    assert await store.batches.cancel("me", batch.id) == first


async def test_what_has_ended_cannot_be_cancelled(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("w", 10, 1)
    assert await store.batches.fail("w", batch.id, [BatchError(code="empty_file", message="empty", line=None)])
    with pytest.raises(NotCancellable):
        await store.batches.cancel("me", batch.id)
    assert (await store.batches.get("me", batch.id)).errors == [BatchError(code="empty_file", message="empty")]


async def test_one_dispatcher_at_a_time_holds_a_batch(store: Store, clock: Clock) -> None:
    batch = await create(store)
    assert [claimed.id for claimed in await store.batches.claim("a", 10, 5)] == [batch.id]
    assert await store.batches.claim("b", 10, 5) == []
    clock.now += 8
    assert await store.batches.renew("a", 10, [batch.id]) == {batch.id}
    clock.now += 8
    assert await store.batches.claim("b", 10, 5) == []
    clock.now += 8
    assert [claimed.id for claimed in await store.batches.claim("b", 10, 5)] == [batch.id]
    assert await store.batches.renew("a", 10, [batch.id]) == set()
    await store.batches.release("a", batch.id)
    assert await store.batches.claim("c", 10, 5) == []
    await store.batches.release("b", batch.id)
    assert [claimed.id for claimed in await store.batches.claim("c", 10, 5)] == [batch.id]


async def test_whoever_lost_the_lease_changes_nothing(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("w", 10, 1)
    assert not await store.batches.begin("late", batch.id, 1)
    assert not await store.batches.fail("late", batch.id, [])
    assert not await store.batches.finish("late", batch, "expired", {})
    with pytest.raises(LeaseLost):
        await store.items.add("late", batch.id, [item(batch, 1)])
    with pytest.raises(LeaseLost):
        await store.items.clear("late", batch.id)
    assert (await store.batches.get("me", batch.id)) == batch


async def test_a_cancellation_that_came_first_stops_the_step(store: Store) -> None:
    batch = await running(store)
    await store.batches.cancel("me", batch.id)
    assert not await store.batches.finalize("w", batch.id)
    assert (await store.batches.get("me", batch.id)).status == "cancelling"


async def test_lines_go_from_pending_to_dispatched_to_done(store: Store) -> None:
    batch = await running(store)
    jobs = [f"{batch.id}-{line}" for line in (1, 2, 3)]
    assert [pending.job_id for pending in await store.items.pending(batch.id, 2)] == jobs[:2]
    assert (await store.items.pending(batch.id, 1))[0].message == b'{"x":"\xc3\xa9"}'
    await store.items.mark_dispatched(jobs[:2])
    assert [pending.job_id for pending in await store.items.pending(batch.id, 9)] == jobs[2:]
    assert await store.items.in_flight(batch.id) == 2
    await store.results.record(result_of(jobs[0]))
    assert await store.items.in_flight(batch.id) == 1
    assert {line.job_id for line in await store.items.unfinished(batch.id, 9)} == set(jobs[1:])
    assert await store.items.requeue(batch.id) == 1
    assert [pending.job_id for pending in await store.items.pending(batch.id, 9)] == jobs[1:]


async def test_a_result_quicker_than_the_mark_stays_done(store: Store) -> None:
    batch = await running(store)
    job = f"{batch.id}-1"
    await store.results.record(result_of(job))
    await store.items.mark_dispatched([job])
    assert await store.items.in_flight(batch.id) == 0


async def test_results_count_in_their_batch_once(store: Store) -> None:
    batch = await running(store)
    done = result_of(f"{batch.id}-1", prompt_tokens=3, completion_tokens=4, cached_tokens=1)
    failed = result_of(f"{batch.id}-2", "failed", prompt_tokens=2)
    await store.results.record_many([done, failed, done])
    await store.results.record_many([done, failed])
    after = await store.batches.get("me", batch.id)
    assert (after.total, after.completed, after.failed) == (3, 1, 1)
    assert (after.usage.prompt_tokens, after.usage.completion_tokens, after.usage.cached_tokens) == (5, 4, 1)


async def test_ended_lines_page_by_outcome_in_order(store: Store) -> None:
    batch = await running(store, 5)
    for line in (4, 1, 3):
        await store.results.record(result_of(f"{batch.id}-{line}", text=f"t{line}"))
    await store.results.record(result_of(f"{batch.id}-2", "expired"))
    page = await store.items.ended(batch.id, completed=True, after_line=0, limit=2)
    assert [(ended.line, ended.custom_id, ended.result.choices[0].text) for ended in page] == [
        (1, "c1", "t1"),
        (3, "c3", "t3"),
    ]
    page = await store.items.ended(batch.id, completed=True, after_line=3, limit=2)
    assert [ended.line for ended in page] == [4]
    assert [ended.line for ended in await store.items.ended(batch.id, completed=False, after_line=0, limit=9)] == [2]


async def test_a_rejected_line_keeps_its_reason(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("w", 10, 1)
    await store.items.add("w", batch.id, [item(batch, 1, rejected=ERROR)])
    assert (await store.items.pending(batch.id, 1))[0].rejected == ERROR


async def test_finishing_shows_the_files_and_drops_what_they_hold(store: Store) -> None:
    batch = await running(store, 1)
    job = f"{batch.id}-1"
    await store.results.record(result_of(job, text="out", completion_tokens=2))
    file_id = await store.files.write(chunks([b"out"]), owner="me", filename="o", purpose="batch_output")
    assert await store.batches.finalize("w", batch.id)
    finalizing = await store.batches.get("me", batch.id)
    assert await store.batches.finish("w", finalizing, "completed", {"output_file_id": file_id, "error_file_id": None})
    ended = await store.batches.get("me", batch.id)
    assert (ended.status, ended.output_file_id, ended.error_file_id) == ("completed", file_id, None)
    assert (await store.files.get("me", file_id)).bytes == 3
    assert await store.items.pending(batch.id, 9) == []
    kept = await store.results.get("me", job)
    assert (kept.choices, kept.usage.completion_tokens) == ([], 2)
    assert await store.batches.claim("x", 10, 5) == []
