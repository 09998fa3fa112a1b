"""A job's events with its Result made whole and recorded: who has been told of an end finds it in the store.

The recorder writes the same Result from the results queue; the ledger takes the first, and the other changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from api.errors import ApiError
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.store import ResponseRecord, Store, StoreError
from schemas.messages import Choice, Delta, FinishReason, Job, Result, ToolCall

log = logging.getLogger(__name__)


class RecordedReader:
    """The events of one job with one choice. Without a store nothing is kept."""

    def __init__(self, reader: EventReader, store: Store | None) -> None:
        self._reader = reader
        self._store = store
        self._parts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._token_ids: list[int] = []
        self._finish: FinishReason | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of reasoning and of text that have come."""
        return sum(map(len, self._reasoning)), sum(map(len, self._parts))

    async def take(self, timeout: float | None = None) -> list[Event]:
        """As of the reader below. The Result has its choice, whether the job was streamed or not."""
        return [await self._whole(event) for event in await self._reader.take(timeout)]

    async def __aiter__(self) -> AsyncIterator[Event]:
        while events := await self.take():
            for event in events:
                yield event

    async def _whole(self, event: Event) -> Event:
        if isinstance(event, Delta):
            self._parts.append(event.text)
            self._reasoning.append(event.reasoning)
            self._call(event.tool_calls)
            self._token_ids += event.token_ids
            self._finish = event.finish_reason or self._finish
            return event
        result = msgspec.structs.replace(event, choices=event.choices or self._choices(event))
        if self._store is not None:
            await _record(self._store, result)
        return result

    def _choices(self, result: Result) -> list[Choice]:
        if result.outcome != "completed" or self._finish is None:
            return []
        return [
            Choice(
                index=0,
                text="".join(self._parts),
                token_ids=self._token_ids,
                finish_reason=self._finish,
                reasoning="".join(self._reasoning),
                tool_calls=self._calls,
            )
        ]

    def _call(self, pieces: Sequence[ToolCall]) -> None:
        for piece in pieces:
            if piece.index == len(self._calls):
                self._calls.append(piece)
            else:
                call = self._calls[piece.index]
                whole = call.arguments + piece.arguments
                self._calls[piece.index] = msgspec.structs.replace(call, arguments=whole)


class KeptSource:
    """Another source of events; the response of `record` is kept in `store`, if there is one, before its job is
    published, and so is its Result."""

    def __init__(self, source: JobSource, store: Store | None, record: ResponseRecord) -> None:
        self._source = source
        self._store = store
        self._record = record

    @asynccontextmanager
    async def submit(self, *jobs: Job) -> AsyncIterator[EventReader]:
        """As of the other source."""
        async with AsyncExitStack() as stack:
            if self._store is None:
                reader = await stack.enter_async_context(self._source.submit(*jobs))
            else:
                async with kept(self._store, self._record):
                    reader = await stack.enter_async_context(self._source.submit(*jobs))
            yield RecordedReader(reader, self._store)


@asynccontextmanager
async def kept(store: Store, record: ResponseRecord) -> AsyncIterator[None]:
    """A block in which a response's job is published: its row is there before, and gone where that is refused."""
    await store.responses.create(record)
    try:
        yield
    except ApiError:
        try:
            await store.responses.delete(record.owner, record.id)
        except StoreError as error:
            log.warning("response %s, which was refused, stays in the store: %s", record.id, error)
        raise


async def _record(store: Store, result: Result) -> None:
    try:
        await store.results.record(result)
    except StoreError as error:
        log.warning("the result of %s is left to the recorder: %s", result.job, error)
