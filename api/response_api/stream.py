"""One response as server-sent events.

Where its client waits for it, the status line is held until the first token, so that a job which fails before is a plain
HTTP error. Where it goes on by itself, its id is told at once: by it the stream can be read on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.chunks import KEEP_ALIVE
from api.disconnect import ClientGone, until_disconnect
from api.errors import ApiError, error_of, request_timeout
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.metrics import JobTimer
from api.response_api.events import EventWriter
from api.settings import ApiSettings
from schemas.messages import Delta, Job, Result


class ResponseStream(Response):
    """Reads from `source` when it is sent, for `timeout` seconds at most. `hold`: see above."""

    media_type = "text/event-stream"

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
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._source = source
        self._job = job
        self._writer = writer
        self._settings = settings
        self._timer = timer
        self._timeout = timeout
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone), self._timer:
            await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        deadline = time.monotonic() + self._timeout
        async with self._source.submit(self._job) as reader:
            events = await self._first(reader) if self._hold else []
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send(send, self._writer.opening())
            try:
                await self._relay(reader, events, deadline, send)
                tail = b""
            except ApiError as error:
                self._timer.outcome = "failed"
                tail = self._writer.broken(error)
            await send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _first(self, reader: EventReader) -> list[Event]:
        """The first events; none if the hold passes without. Raises ApiError if the job fails before its first token."""
        try:
            events = await reader.take(min(self._settings.hold_seconds, self._timeout))
        except TimeoutError:
            if self._timeout <= self._settings.hold_seconds:
                raise request_timeout() from None
            return []
        if isinstance(events[0], Result) and (error := error_of(events[0])) is not None:
            raise error
        return events

    async def _relay(self, reader: EventReader, events: list[Event], deadline: float, send: Send) -> None:
        """Send `events` and what follows, and a comment in each silence. Raises ApiError past `deadline`, and where the
        reading fails."""
        while True:
            await _send(send, b"".join(map(self._render, events)))
            if events and isinstance(events[-1], Result):
                return
            try:
                events = await reader.take(min(self._settings.keep_alive_seconds, deadline - time.monotonic()))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise request_timeout() from None
                await _send(send, KEEP_ALIVE)
                events = []

    def _render(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            self._timer.tokens(len(event.token_ids))
            return self._writer.delta(event)
        if event.outcome == "completed":
            self._timer.used(event.usage)
        else:
            self._timer.outcome = "failed"
        return self._writer.end(event)


async def _send(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
