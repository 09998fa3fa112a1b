"""Files: streamed in and out, scoped by owner, listed in pages, gone when they expire."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from api.store import FileRecord, FileTooLarge, LineTooLong, NotFound, Store
from api.store.files import ABANDONED_AFTER, CHUNK_BYTES, rechunked
from tests.store.databases import Clock, chunks

MEGABYTE = 1024 * 1024


async def upload(store: Store, *parts: bytes, owner: str = "me", expires_after: int | None = None) -> FileRecord:
    return await store.files.create(
        chunks(parts), owner=owner, filename="in.jsonl", purpose="batch", limit=MEGABYTE, expires_after=expires_after
    )


async def read(store: Store, file_id: str) -> bytes:
    return b"".join([chunk async for chunk in store.files.content("me", file_id)])


async def lines(store: Store, file_id: str, max_bytes: int = 1000) -> list[bytes]:
    return [line async for line in store.files.lines("me", file_id, max_bytes=max_bytes)]


@pytest.mark.parametrize("parts", [[], [b""], [b"a"], [b"ab", b"", b"c"], [b"x" * 1000] * 700])
async def test_content_comes_back_as_it_went_in(store: Store, parts: list[bytes]) -> None:
    record = await upload(store, *parts)
    assert record.bytes == sum(map(len, parts))
    assert (record.filename, record.purpose, record.status) == ("in.jsonl", "batch", "processed")
    assert await read(store, record.id) == b"".join(parts)


async def test_rechunking_makes_full_chunks_and_one_rest() -> None:
    sizes = [len(chunk) async for chunk in rechunked(chunks([b"x" * CHUNK_BYTES, b"", b"y" * (CHUNK_BYTES + 7)]))]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 7]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"one", [b"one"]),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\r\n\r\nthree\r", [b"one", b"", b"three"]),
        (b"\n", [b""]),
    ],
)
async def test_lines_lose_their_ends(store: Store, content: bytes, expected: list[bytes]) -> None:
    record = await upload(store, content)
    assert await lines(store, record.id) == expected


async def test_lines_cross_chunks(store: Store) -> None:
    whole = b"".join(b"%07d\n" % number for number in range(100_000))
    record = await upload(store, whole)
    assert await lines(store, record.id) == whole.split(b"\n")[:-1]


async def test_a_line_past_its_limit_is_named(store: Store) -> None:
    record = await upload(store, b"short\n" + b"x" * 1001)
    with pytest.raises(LineTooLong) as caught:
        await lines(store, record.id)
    assert caught.value.line == 2


async def test_a_file_past_its_limit_leaves_nothing(store: Store) -> None:
    with pytest.raises(FileTooLarge):
        await upload(store, b"x" * MEGABYTE, b"y")
    assert await left_over(store) == 0


async def test_an_upload_that_breaks_off_leaves_nothing(store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK_BYTES
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.files.create(broken(), owner="me", filename="f", purpose="batch", limit=MEGABYTE)
    assert await left_over(store) == 0


async def test_a_cancelled_upload_leaves_nothing(store: Store) -> None:
    stuck = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK_BYTES
        stuck.set()
        await asyncio.Event().wait()

    upload = store.files.create(stalled(), owner="me", filename="f", purpose="batch", limit=MEGABYTE)
    task = asyncio.create_task(upload)
    await stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left_over(store) == 0


async def left_over(store: Store) -> int:
    """Files of any state: purging far in the future finds them all."""
    clock = store.clock
    assert isinstance(clock, Clock)
    clock.now += 10 * ABANDONED_AFTER
    return await store.files.purge() + len((await store.files.list("me")).data)


async def test_20_megabytes_stream_in_flat_memory(store: Store) -> None:
    async def generated() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield bytes(64 * 1024)

    tracemalloc.start()
    try:
        record = await store.files.create(generated(), owner="me", filename="f", purpose="batch", limit=30 * MEGABYTE)
        size = 0
        async for chunk in store.files.content("me", record.id):
            size += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == record.bytes == 20 * MEGABYTE
    assert peak < 5 * MEGABYTE


async def test_a_file_is_its_owners_alone(store: Store) -> None:
    record = await upload(store, b"x")
    with pytest.raises(NotFound):
        await store.files.get("you", record.id)
    with pytest.raises(NotFound):
        await store.files.delete("you", record.id)
    with pytest.raises(NotFound):
        [chunk async for chunk in store.files.content("you", record.id)]
    assert (await store.files.list("you")).data == []
    assert (await store.files.get("me", record.id)) == record


async def test_deleted_means_gone(store: Store) -> None:
    record = await upload(store, b"x")
    await store.files.delete("me", record.id)
    with pytest.raises(NotFound):
        await store.files.delete("me", record.id)
    with pytest.raises(NotFound):
        await read(store, record.id)


async def test_a_file_deleted_while_it_is_read_says_so(store: Store) -> None:
    record = await upload(store, b"x" * (CHUNK_BYTES + 1))
    content = store.files.content("me", record.id)
    assert len(await anext(content)) == CHUNK_BYTES
    await store.files.delete("me", record.id)
    with pytest.raises(NotFound):
        await anext(content)


async def test_lists_page_in_both_orders(store: Store) -> None:
    ids = [(await upload(store, b"x")).id for _ in range(5)]
    first = await store.files.list("me", limit=2)
    assert ([file.id for file in first.data], first.has_more) == ([ids[4], ids[3]], True)
    rest = await store.files.list("me", limit=3, after=ids[3])
    assert ([file.id for file in rest.data], rest.has_more) == ([ids[2], ids[1], ids[0]], False)
    rising = await store.files.list("me", limit=2, order="asc", after=ids[1])
    assert ([file.id for file in rising.data], rising.has_more) == ([ids[2], ids[3]], True)
    assert (await store.files.list("me", purpose="assistants")).data == []
    assert len((await store.files.list("me", purpose="batch")).data) == 5


async def test_an_expired_file_is_gone_and_then_purged(store: Store, clock: Clock) -> None:
    record = await upload(store, b"x", expires_after=3600)
    lasting = await upload(store, b"y")
    assert record.expires_at == clock.now + 3600
    clock.now += 3600
    with pytest.raises(NotFound):
        await store.files.get("me", record.id)
    assert [file.id for file in (await store.files.list("me")).data] == [lasting.id]
    assert await store.files.purge() == 1
    assert await store.files.purge() == 0


async def test_a_written_file_is_unseen_until_published(store: Store) -> None:
    file_id = await store.files.write(chunks([b"x"]), owner="me", filename="f", purpose="batch_output")
    with pytest.raises(NotFound):
        await store.files.get("me", file_id)
    await store.files.discard(file_id)
    assert await left_over(store) == 0
