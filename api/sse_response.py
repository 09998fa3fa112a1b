"""What streamed answers have in common: events of jobs in, server-sent events out.

Where its client waits for an answer, the status line is held until the first token, so that a job which fails before is
a plain HTTP error. While jobs queue longer than the hold, the stream opens and comments keep the connection alive.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.disconnect import ClientGone, until_disconnect
from api.errors import ApiError, error_of, request_timeout
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.metrics import JobTimer
from api.settings import ApiSettings
from schemas.messages import Job, Result


class SseResponse(Response):
    """Reads `jobs` from `source` when it is sent, for `timeout` seconds at most. `hold`: see above."""

    media_type = "text/event-stream"

    def __init__(
        self,
        source: JobSource,
        jobs: Sequence[Job],
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
        self._jobs = jobs
        self._settings = settings
        self._timer = timer
        self._timeout = timeout
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone), self._timer:
            await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        deadline = time.monotonic() + self._timeout
        async with self._source.submit(*self._jobs) as reader:
            events = await self._first(reader) if self._hold else []
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                tail = await self._relay(reader, events, deadline, send)
            except ApiError as error:
                self._timer.outcome = "failed"
                tail = self._broken(error)
            await send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _first(self, reader: EventReader) -> list[Event]:
        """The first events; none if the hold passes without. Raises ApiError if a job fails before its first token."""
        try:
            events = await reader.take(min(self._settings.hold_seconds, self._timeout))
        except TimeoutError:
            if self._timeout <= self._settings.hold_seconds:
                raise request_timeout() from None
            return []
        if isinstance(events[0], Result) and (error := error_of(events[0])) is not None:
            raise error
        return events

    async def _next(self, reader: EventReader, deadline: float) -> list[Event] | None:
        """What comes next: None in a silence, [] after the end. Raises ApiError past `deadline`, and where the reading
        fails."""
        try:
            return await reader.take(min(self._settings.keep_alive_seconds, deadline - time.monotonic()))
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise request_timeout() from None
            return None

    async def _relay(self, reader: EventReader, events: list[Event], deadline: float, send: Send) -> bytes:
        """Send `events`, then what follows as it comes, and a comment in each silence. Returns the last bytes. Raises
        ApiError past `deadline`, and where a job or the reading fails."""
        raise NotImplementedError

    def _broken(self, error: ApiError) -> bytes:
        """How a stream that has begun tells of an error."""
        raise NotImplementedError


async def send_body(send: Send, body: bytes) -> None:
    """A piece of the body, if there is any."""
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
