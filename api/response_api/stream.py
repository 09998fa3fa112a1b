"""One response as server-sent events.

A client that waits for it gets a plain HTTP error where its job fails before the first token. Of a response that goes on
by itself the id is told at once: by it the stream can be read on.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Send

from api.chunks import KEEP_ALIVE
from api.errors import ApiError
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.metrics import JobTimer
from api.response_api.events import EventWriter
from api.settings import ApiSettings
from api.sse_response import SseResponse, send_body
from schemas.messages import Delta, Job, Result


class ResponseStream(SseResponse):
    def __init__(
        self,
        source: JobSource,
        job: Job,
        writer: EventWriter,
        settings: ApiSettings,
        timer: JobTimer,
        *,
        timeout: float,
        hold: bool,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(source, [job], settings, timer, timeout=timeout, hold=hold, headers=headers)
        self._writer = writer

    async def _relay(self, reader: EventReader, events: list[Event], deadline: float, send: Send) -> bytes:
        await send_body(send, self._writer.opening())
        while True:
            await send_body(send, b"".join(map(self._render, events)))
            if events and isinstance(events[-1], Result):
                return b""
            while (following := await self._next(reader, deadline)) is None:
                await send_body(send, KEEP_ALIVE)
            events = following

    def _broken(self, error: ApiError) -> bytes:
        return self._writer.broken(error)

    def _render(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            self._timer.tokens(len(event.token_ids))
            return self._writer.delta(event)
        if event.outcome == "completed":
            self._timer.used(event.usage)
        else:
            self._timer.outcome = "failed"
        return self._writer.end(event)
