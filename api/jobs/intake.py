"""A new batch's input file, streamed into items."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from api.jobs.lines import LineChecker, ParseBody
from api.store import BatchError, BatchRecord, LineTooLong, NotFound, Store

MEGABYTE = 1024 * 1024
SLICE_BYTES = MEGABYTE
SLICE_LINES = 200


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What an input file may hold: OpenAI's limits, and a line that still fits into one broker message."""

    lines: int = 50_000
    bytes: int = 200 * MEGABYTE
    line_bytes: int = 8 * MEGABYTE


class Intake:
    """Reads, checks and stores the lines of one batch, a slice at a time: memory does not grow with the file."""

    def __init__(self, store: Store, batch: BatchRecord, worker: str, parse: ParseBody, limits: IntakeLimits) -> None:
        self._store = store
        self._worker = worker
        self._batch = batch
        self._limits = limits
        self._checker = LineChecker(batch, parse)

    async def run(self) -> tuple[int, list[BatchError]]:
        """Insert the items; what an interrupted run left is dropped first. Returns their number and the faults found,
        any of which fails the batch. Raises LeaseLost."""
        await self._store.items.clear(self._worker, self._batch.id)
        try:
            await self._read()
        except NotFound:
            return self._failed("file_not_found", "The input file does not exist any more.", "input_file_id")
        except LineTooLong as error:
            return self._failed("line_too_long", f"A line has at most {error.limit} bytes.", None, error.line)
        if not self._checker.errors and self._checker.total == 0:
            return self._failed("empty_file", "The input file holds no request.", "input_file_id")
        return self._checker.total, self._checker.errors

    async def _read(self) -> None:
        batch = self._batch
        file = await self._store.files.get(batch.owner, batch.input_file_id)
        if file.bytes > self._limits.bytes:
            self._failed("file_too_large", f"The input file has at most {self._limits.bytes} bytes.", "input_file_id")
            return
        waiting: list[tuple[int, bytes]] = []
        number = size = 0
        async for text in self._store.files.lines(batch.owner, file.id, max_bytes=self._limits.line_bytes):
            number, size = number + 1, size + len(text)
            waiting.append((number, text))
            if len(waiting) >= SLICE_LINES or size >= SLICE_BYTES:
                if not await self._store_slice(waiting):
                    return
                waiting, size = [], 0
        await self._store_slice(waiting)

    async def _store_slice(self, lines: list[tuple[int, bytes]]) -> bool:
        """False when reading on is of no use. Checking takes time enough to stall an event loop, hence the thread."""
        items = await asyncio.to_thread(self._checker.check, lines)
        if self._checker.total > self._limits.lines:
            self._failed("too_many_lines", f"A batch has at most {self._limits.lines} lines.", "input_file_id")
            return False
        if items and not self._checker.errors:
            await self._store.items.add(self._worker, self._batch.id, items)
        return not self._checker.hopeless

    def _failed(
        self, code: str, message: str, param: str | None, line: int | None = None
    ) -> tuple[int, list[BatchError]]:
        self._checker.errors.append(BatchError(code=code, message=message, param=param, line=line))
        return self._checker.total, self._checker.errors
