"""One streamed answer: jobs in, server-sent events out.

The status line is held until the first token, so that a job which fails before it is a plain HTTP error. While jobs
queue longer than the hold, the stream opens and comments keep the connection alive.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.chunks import DONE, KEEP_ALIVE, ChunkWriter, error_event
from api.disconnect import ClientGone, until_disconnect
from api.errors import ApiError, error_of, request_timeout
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.metrics import JobTimer
from api.settings import ApiSettings
from schemas.messages import Delta, Job, Result, Usage


class EventStream(Response):
    """Submits `jobs` when it is sent; leaving it, by whatever way, cancels what still runs."""

    media_type = "text/event-stream"

    def __init__(
        self,
        source: JobSource,
        jobs: Sequence[Job],
        writer: ChunkWriter,
        settings: ApiSettings,
        timer: JobTimer,
        *,
        timeout: float,
        include_usage: bool,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._source = source
        self._jobs = jobs
        self._writer = writer
        self._settings = settings
        self._timer = timer
        self._timeout = timeout
        self._include_usage = include_usage
        self._first_choice = {job.id: index * job.sampling.n for index, job in enumerate(jobs)}
        self._choices = sum(job.sampling.n for job in jobs)
        self._usages: list[Usage] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone), self._timer:
            await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        deadline = time.monotonic() + self._timeout
        async with self._source.submit(*self._jobs) as stream:
            events = await self._hold(stream)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._relay(stream, events, deadline, send)
                tail = self._writer.usage(self._usages) + DONE if self._include_usage else DONE
            except ApiError as error:
                self._timer.outcome = "failed"
                tail = error_event(error)
            await send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _hold(self, stream: EventReader) -> list[Event]:
        """The first events; none if the hold passes without. Raises ApiError if a job fails before its first token."""
        try:
            events = await stream.take(min(self._settings.hold_seconds, self._timeout))
        except TimeoutError:
            if self._timeout <= self._settings.hold_seconds:
                raise request_timeout() from None
            return []
        if isinstance(events[0], Result) and (error := error_of(events[0])) is not None:
            raise error
        return events

    async def _relay(self, stream: EventReader, events: list[Event], deadline: float, send: Send) -> None:
        """Send `events`, then what follows as it comes, each batch in one piece, and a comment in each silence. Raises
        ApiError past `deadline`, and where a job failed, after the tokens before it."""
        opening = self._writer.opening(self._choices)
        while True:
            body, error = self._render(events) if events else (KEEP_ALIVE, None)
            if opening and events:
                body, opening = opening + body, b""
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if error is not None:
                raise error
            try:
                events = await stream.take(min(self._settings.keep_alive_seconds, deadline - time.monotonic()))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise request_timeout() from None
                events = []
            else:
                if not events:
                    return

    def _render(self, events: list[Event]) -> tuple[bytes, ApiError | None]:
        """The events' bytes up to the first failure, and that failure."""
        parts, tokens, error = [], 0, None
        for event in events:
            if isinstance(event, Delta):
                tokens += len(event.token_ids)
                parts.append(self._writer.delta(self._first_choice[event.job] + event.choice, event))
                continue
            error = error_of(event)
            if error is not None:
                break
            self._usages.append(event.usage)
            self._timer.used(event.usage)
        self._timer.tokens(tokens)
        return b"".join(parts), error
