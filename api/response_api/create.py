"""A new response: validated, admitted, stored, published; then answered whole, as a stream, or as queued."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from api.auth import owner_of
from api.bodies import read_json
from api.disconnect import until_disconnect
from api.errors import ApiError, error_of, request_timeout
from api.event_log import JobSource, LogSource, log_of
from api.generate import announce_room, ignored_header
from api.handlers import json_response
from api.idempotency import REPLAYED, idempotency_key, in_progress, json_fingerprint, key_reused
from api.metrics import JobTimer
from api.response_api.body import response_body
from api.response_api.events import EventWriter
from api.response_api.outputs import KeptSource, kept
from api.response_api.request import PREFIX, RESPONSES, job_of, new_record, parse_response
from api.response_api.stream import ResponseStream
from api.services import Services, services
from api.store import NotFound, ResponseRecord
from api.store.responses import Stored
from api.timeouts import wanted_timeout
from schemas.messages import Job, Result
from schemas.openai.responses import ResponseRequest

BACKGROUND_SECONDS = 86_400.0
"""A background response that has not ended after so long fails."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A valid request. `timeout` in seconds, `mark` is the same for the same request."""

    shared: Services
    owner: str
    wanted: ResponseRequest
    history: list[Stored]
    timeout: float
    mark: str

    def record(self, response_id: str) -> ResponseRecord:
        now = time.time()
        deadline = now + (BACKGROUND_SECONDS if self.wanted.background else self.timeout)
        defaults = self.shared.models.sampling_defaults(self.wanted.model)
        return new_record(self.wanted, response_id, self.owner, created=now, deadline=deadline, defaults=defaults)

    def job(self, record: ResponseRecord) -> Job:
        return job_of(self.wanted, record, self.history)

    def admit(self) -> None:
        """Raises ApiError 429."""
        longest = self.wanted.max_output_tokens or math.inf
        self.shared.admission.admit(self.wanted.model, self.owner + self.mark, 1, longest)


@dataclass(frozen=True, slots=True)
class Opened:
    """How a response is answered: from `source`; without one it goes on by itself, and `result` is how it ended."""

    record: ResponseRecord
    source: JobSource | None
    result: Result | None = None
    is_replay: bool = False


async def create(request: Request) -> Response:
    """Answer a request for a response. Raises ApiError before anything has been sent."""
    asked = await _asked(request)
    try:
        opened = await _opened(asked, idempotency_key(request))
    finally:
        announce_room(request, asked.wanted.model)
    return await _answer(request, asked, opened)


async def _opened(asked: Asked, key: str | None) -> Opened:
    if key is not None:
        return await _open_keyed(asked, key)
    asked.admit()
    return await _open(asked, asked.record(new_response_id()), detached=bool(asked.wanted.background))


def new_response_id() -> str:
    return f"{PREFIX}{secrets.token_hex(16)}"


async def _asked(request: Request) -> Asked:
    shared, owner = services(request), owner_of(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    wanted = parse_response(body)
    if idempotency_key(request) is not None and wanted.store is False:
        message = "With an Idempotency-Key a response is stored: store must not be false."
        raise ApiError(400, message, param="store", code="invalid_value")
    timeout = wanted_timeout(request, shared.settings.request_timeout)
    await shared.models.require(wanted.model, embeddings=False)
    history = await _history(shared, owner, wanted.previous_response_id)
    return Asked(shared, owner, wanted, history, timeout, json_fingerprint(RESPONSES, body))


async def _history(shared: Services, owner: str, previous: str | None) -> list[Stored]:
    """The responses before a new one, the first one first. Raises ApiError 400."""
    if previous is None:
        return []
    param = "previous_response_id"
    try:
        history = await shared.store.responses.chain(owner, previous)
    except NotFound as error:
        message = f"No such response: {error.id[:128]}"
        raise ApiError(400, message, param=param, code="previous_response_not_found") from None
    record, result = history[-1]
    if result is None and record.cancelled_at is None:
        message = f"The response {previous} has not ended yet."
        raise ApiError(400, message, param=param, code="previous_response_not_ended")
    return history


async def _open(asked: Asked, record: ResponseRecord, *, detached: bool) -> Opened:
    """Have it run. Detached, it is accepted when this returns, and goes on whoever leaves."""
    shared, job = asked.shared, asked.job(record)
    if not detached:
        return Opened(record, KeptSource(shared.client, shared.store if job.store_output else None, record))
    async with kept(shared.store, record):
        if asked.wanted.background and not asked.wanted.stream:
            await shared.client.publish(job)
            return Opened(record, None)
        return Opened(record, LogSource(await shared.runs.start(job, record)))


async def _open_keyed(asked: Asked, key: str) -> Opened:
    """What the key stands for: a new response, or the one that it was first given for. One whose process died before it
    was accepted is published again under its id, and counts once. Raises ApiError 409."""
    keys = asked.shared.store.keys
    claimed = await keys.get(asked.owner, key)
    if claimed is None:
        asked.admit()
        claimed, is_mine = await keys.claim(asked.owner, key, asked.mark, new_response_id())
        if is_mine:
            try:
                opened = await _open(asked, asked.record(claimed.object_id), detached=True)
            except Exception:
                await keys.release(claimed)
                raise
            await keys.accept(claimed)
            return opened
    if claimed.fingerprint != asked.mark:
        raise key_reused()
    try:
        return _again(asked, *await asked.shared.store.responses.get(asked.owner, claimed.object_id))
    except NotFound:
        if claimed.is_accepted:
            raise  # deleted since
        raise in_progress() from None


def _again(asked: Asked, record: ResponseRecord, result: Result | None) -> Opened:
    """A response that came before, wherever it stands. Raises ApiError 409 where this process cannot follow it."""
    if asked.wanted.background and not asked.wanted.stream:
        return Opened(record, None, result, is_replay=True)
    source = source_of(asked.shared, record, result)
    if source is None:
        raise in_progress()
    return Opened(record, source, is_replay=True)


def source_of(shared: Services, record: ResponseRecord, result: Result | None) -> JobSource | None:
    """The events of a stored response: from its end, or as they come. None where its client alone follows it."""
    if result is not None:
        return LogSource(log_of([result], stream=True))
    if record.request["background"] or shared.runs.find(record) is not None:
        return LogSource(shared.runs.attach(record))
    return None


async def _answer(request: Request, asked: Asked, opened: Opened) -> Response:
    shared, record = asked.shared, opened.record
    headers = ignored_header(asked.wanted.ignored_params()) | (REPLAYED if opened.is_replay else {})
    if opened.source is None:
        return json_response(response_body(record, opened.result, "queued"), headers=headers)
    job = asked.job(record)
    timer = JobTimer(shared.metrics, job.model, 1, is_replay=opened.is_replay)
    if asked.wanted.stream:
        return ResponseStream(
            opened.source,
            job,
            EventWriter(record),
            shared.settings,
            timer,
            timeout=asked.timeout,
            hold=not asked.wanted.background,
            headers=headers,
        )
    with timer:
        result = await until_disconnect(request.receive, _whole(opened.source, job, asked.timeout))
        timer.used(result.usage)
    return json_response(response_body(record, result), headers=headers)


async def _whole(source: JobSource, job: Job, timeout: float) -> Result:
    """The job's Result. Raises ApiError where it did not complete, and 504 after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout), source.submit(job) as reader:
            async for event in reader:
                if isinstance(event, Result):
                    if (error := error_of(event)) is not None:
                        raise error
                    return event
    except TimeoutError:
        raise request_timeout() from None
    raise AssertionError("a job's events end with its Result")
