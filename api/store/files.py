"""Files, kept in chunks so that content streams both ways and no process needs a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Literal

from sqlalchemy import ColumnElement, RowMapping, and_, delete, insert, or_, select, update

from api.store.database import Database, Transaction
from api.store.errors import FileTooLarge, LineTooLong, NotFound
from api.store.ids import new_id
from api.store.records import FileRecord, Page
from api.store.tables import file_chunks, files

CHUNK_BYTES = 256 * 1024
ABANDONED_AFTER = 86_400
"""Seconds after which a file still being written is given up for dead."""


class Files:
    """Uploaded and generated files. A file is seen by nobody before it is complete, nor once it has expired."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        chunks: AsyncIterable[bytes],
        *,
        owner: str,
        filename: str,
        purpose: str,
        limit: int,
        expires_after: int | None = None,
        file_id: str | None = None,
    ) -> FileRecord:
        """Store a stream of at most `limit` bytes; `expires_after` in seconds. Its id is `file_id` where that is given.
        Raises FileTooLarge, or whatever `chunks` raises; nothing is kept then."""
        file_id = await self.write(
            chunks,
            owner=owner,
            filename=filename,
            purpose=purpose,
            limit=limit,
            expires_after=expires_after,
            file_id=file_id,
        )
        async with self._database.write() as transaction:
            await publish_files(transaction, [file_id])
        return await self.get(owner, file_id)

    async def write(
        self,
        chunks: AsyncIterable[bytes],
        *,
        owner: str,
        filename: str,
        purpose: str,
        limit: int | None = None,
        expires_after: int | None = None,
        file_id: str | None = None,
    ) -> str:
        """As `create`, but the file stays unseen until `publish_files` in a transaction of the caller's. Returns its
        id."""
        now = int(self._clock())
        file_id = file_id or new_id("file-")
        row = {
            "id": file_id,
            "owner": owner,
            "bytes": 0,
            "created_at": now,
            "expires_at": None if expires_after is None else now + expires_after,
            "filename": filename,
            "purpose": purpose,
            "status": "writing",
        }
        async with self._database.write() as transaction:
            await transaction.execute(insert(files).values(row))
        try:
            await self._write_chunks(file_id, chunks, limit)
        except BaseException:
            # Also when cancelled: the client that hung up half-way leaves nothing behind.
            await asyncio.shield(self.discard(file_id))
            raise
        return file_id

    async def get(self, owner: str, file_id: str) -> FileRecord:
        """Raises NotFound."""
        async with self._database.read() as transaction:
            query = select(files).where(files.c.id == file_id, self._visible(owner))
            row = (await transaction.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound("file", file_id)
        return _record(row)

    async def list(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Page[FileRecord]:
        """The owner's files, newest first unless `order` is "asc", from behind `after`."""
        query = select(files).where(self._visible(owner)).limit(limit + 1)
        query = query.order_by(files.c.id.desc() if order == "desc" else files.c.id)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id < after if order == "desc" else files.c.id > after)
        async with self._database.read() as transaction:
            rows = (await transaction.execute(query)).mappings().all()
        return Page([_record(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFound."""
        async with self._database.write() as transaction:
            query = delete(files).where(files.c.id == file_id, self._visible(owner))
            deleted = (await transaction.execute(query)).rowcount
        if not deleted:
            raise NotFound("file", file_id)

    async def content(self, owner: str, file_id: str) -> AsyncIterator[bytes]:
        """The bytes in chunks of at most 256 KiB, each read in a transaction of its own. Raises NotFound, before the
        first chunk or, when the file is deleted meanwhile, in the midst."""
        record = await self.get(owner, file_id)
        sent, seq = 0, 0
        while sent < record.bytes:
            data = await self._chunk(file_id, seq)
            yield data
            sent, seq = sent + len(data), seq + 1

    async def lines(self, owner: str, file_id: str, *, max_bytes: int) -> AsyncIterator[bytes]:
        """The lines without their ends, blank ones too. Raises NotFound; LineTooLong past `max_bytes`, which bounds the
        memory used."""
        number, rest = 1, b""
        async for chunk in self.content(owner, file_id):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield _within(line, number, max_bytes)
                number += 1
            _within(rest, number, max_bytes)
        if rest:
            yield rest.removesuffix(b"\r")

    async def discard(self, file_id: str) -> None:
        """Delete a file that was never published; of a published one nothing."""
        async with self._database.write() as transaction:
            await transaction.execute(delete(files).where(files.c.id == file_id, files.c.status == "writing"))

    async def purge(self) -> int:
        """Delete what has expired and what was abandoned half-written. Returns how many files."""
        now = int(self._clock())
        abandoned = and_(files.c.status == "writing", files.c.created_at < now - ABANDONED_AFTER)
        async with self._database.write() as transaction:
            query = delete(files).where(or_(files.c.expires_at <= now, abandoned))
            return (await transaction.execute(query)).rowcount

    def _visible(self, owner: str) -> ColumnElement[bool]:
        lasting = or_(files.c.expires_at.is_(None), files.c.expires_at > int(self._clock()))
        return and_(files.c.owner == owner, files.c.status == "processed", lasting)

    async def _write_chunks(self, file_id: str, chunks: AsyncIterable[bytes], limit: int | None) -> None:
        size, seq = 0, 0
        async for data in rechunked(chunks):
            size += len(data)
            if limit is not None and size > limit:
                raise FileTooLarge(limit)
            async with self._database.write() as transaction:
                await transaction.execute(insert(file_chunks).values(file_id=file_id, seq=seq, data=data))
                await transaction.execute(update(files).where(files.c.id == file_id).values(bytes=size))
            seq += 1

    async def _chunk(self, file_id: str, seq: int) -> bytes:
        query = select(file_chunks.c.data).where(file_chunks.c.file_id == file_id, file_chunks.c.seq == seq)
        async with self._database.read() as transaction:
            data: bytes | None = (await transaction.execute(query)).scalar_one_or_none()
        if data is None:
            raise NotFound("file", file_id)
        return data


async def publish_files(transaction: Transaction, file_ids: list[str]) -> None:
    """Make written files visible, in the caller's transaction."""
    await transaction.execute(update(files).where(files.c.id.in_(file_ids)).values(status="processed"))


async def rechunked(chunks: AsyncIterable[bytes], size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    """The same bytes in chunks of exactly `size`, the last perhaps shorter, none empty."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _within(line: bytes, number: int, max_bytes: int) -> bytes:
    if len(line) > max_bytes:
        raise LineTooLong(number, max_bytes)
    return line.removesuffix(b"\r")


def _record(row: RowMapping) -> FileRecord:
    return FileRecord(**row)
