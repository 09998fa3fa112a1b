"""What chat and plain completions do alike: validate, submit, answer whole or as a stream."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from api.auth import owner_of
from api.bodies import read_json
from api.disconnect import until_disconnect
from api.errors import error_of, request_timeout
from api.event_log import JobSource
from api.handlers import ANSWER_HEADERS, json_response
from api.idempotency import REPLAYED, idempotency_key, json_fingerprint
from api.keyed import MakeJobs, Opened
from api.metrics import JobTimer
from api.requests import ignored_params, jobs_from_request, parse_body
from api.responses import body_from_results, response_id
from api.rich_chunks import chunk_writer
from api.services import services
from api.sse import EventStream
from api.timeouts import wanted_timeout
from schemas.messages import Job, Result

IGNORED_PARAMS = "x-headrace-ignored-params"
MAX_NAMED = 50
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


async def generate(request: Request, endpoint: str) -> Response:
    """Answer a completion request. Raises ApiError before anything has been sent."""
    shared = services(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    parsed = parse_body(endpoint, body)
    timeout = wanted_timeout(request, shared.settings.request_timeout)
    await shared.models.require(parsed.model, embeddings=False)
    owner = owner_of(request)
    # Should this process die, no worker takes up what nobody waits for any more.
    deadline = time.time() + timeout

    def make(job_id: str) -> list[Job]:
        return jobs_from_request(parsed, job_id=job_id, owner=owner, deadline=deadline)

    try:
        opened = await open_jobs(request, parsed.model, json_fingerprint(endpoint, body), make)
    finally:
        announce_room(request, parsed.model)
    body_id = response_id(endpoint, parsed.request_id or opened.job_id)
    headers = ignored_header(ignored_params(endpoint, parsed)) | (REPLAYED if opened.is_replay else {})
    choices = sum(job.sampling.n for job in opened.jobs)
    timer = JobTimer(shared.metrics, parsed.model, choices, is_replay=opened.is_replay)
    if parsed.stream:
        writer = chunk_writer(endpoint, body_id, int(time.time()), parsed)
        return EventStream(
            opened.source,
            opened.jobs,
            writer,
            shared.settings,
            timer,
            timeout=timeout,
            include_usage=parsed.include_usage,
            headers=headers,
        )
    results = await results_of(request, opened, timer, timeout)
    return json_response(body_from_results(endpoint, body_id, results), headers=headers)


async def open_jobs(request: Request, model: str, fingerprint: str, make: MakeJobs) -> Opened:
    """The jobs and where their events come from: the queue, once they are admitted, or what an earlier request with the
    same Idempotency-Key has brought. Raises ApiError, StoreError."""
    shared, owner = services(request), owner_of(request)

    def admit(jobs: list[Job]) -> None:
        sampling = jobs[0].sampling
        longest = sampling.num_outputs * (sampling.max_tokens or math.inf)
        shared.admission.admit(model, owner + fingerprint, len(jobs), longest)

    key = idempotency_key(request)
    if key is not None:
        return await shared.keyed.open(owner, key, fingerprint, make, admit)
    job_id = secrets.token_hex(16)
    jobs = make(job_id)
    admit(jobs)
    return Opened(shared.client, job_id, jobs, is_replay=False)


def announce_room(request: Request, model: str) -> None:
    """Have the answer say how much more the model takes, be it an error."""
    room = services(request).admission.room(model)
    setattr(request.state, ANSWER_HEADERS, {} if room is None else room.headers())


async def results_of(request: Request, opened: Opened, timer: JobTimer, timeout: float) -> list[Result]:
    """The jobs' Results in order, timed. Raises ClientGone, and ApiError as `_whole` does."""
    with timer:
        results = await until_disconnect(request.receive, _whole(opened.source, opened.jobs, timeout))
        for result in results:
            timer.used(result.usage)
    return results


async def _whole(source: JobSource, jobs: Sequence[Job], timeout: float) -> list[Result]:
    """The jobs' Results in order. Raises ApiError at the first that failed, and 504 after `timeout` seconds."""
    results: dict[str, Result] = {}
    try:
        async with asyncio.timeout(timeout), source.submit(*jobs) as stream:
            async for event in stream:
                if isinstance(event, Result):
                    if (error := error_of(event)) is not None:
                        raise error
                    results[event.job] = event
    except TimeoutError:
        raise request_timeout() from None
    return [results[job.id] for job in jobs]


def ignored_header(names: list[str]) -> dict[str, str]:
    """Names come from the client: only what a header may hold is echoed."""
    safe = [_UNSAFE.sub("_", name[:100]) for name in names[:MAX_NAMED]]
    return {IGNORED_PARAMS: ", ".join(safe)} if safe else {}
