"""A streamed completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import Send

from api.chunks import DONE, KEEP_ALIVE, ChunkWriter, error_event
from api.errors import ApiError, error_of
from api.event_log import EventReader, JobSource
from api.job_stream import Event
from api.metrics import JobTimer
from api.settings import ApiSettings
from api.sse_response import SseResponse, send_body
from schemas.messages import Delta, Job, Usage


class EventStream(SseResponse):
    """Submits `jobs` when it is sent; leaving it, by whatever way, cancels what still runs."""

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
        super().__init__(source, jobs, settings, timer, timeout=timeout, hold=True, headers=headers)
        self._writer = writer
        self._include_usage = include_usage
        self._first_choice = {job.id: index * job.sampling.n for index, job in enumerate(jobs)}
        self._choices = sum(job.sampling.n for job in jobs)
        self._usages: list[Usage] = []

    async def _relay(self, reader: EventReader, events: list[Event], deadline: float, send: Send) -> bytes:
        """Each batch of events goes out in one piece, the last ones before an error too."""
        opening = self._writer.opening(self._choices)
        following: list[Event] | None = events or None
        while following is None or following:
            body, error = (KEEP_ALIVE, None) if following is None else self._render(following)
            if opening and following:
                body, opening = opening + body, b""
            await send_body(send, body)
            if error is not None:
                raise error
            following = await self._next(reader, deadline)
        return self._writer.usage(self._usages) + DONE if self._include_usage else DONE

    def _broken(self, error: ApiError) -> bytes:
        return error_event(error)

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
