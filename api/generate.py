"""What chat and plain completions do alike: validate, submit, answer whole or as a stream."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from api.bodies import read_json
from api.chunks import ChunkWriter
from api.disconnect import ClientGone, until_disconnect
from api.errors import error_of, request_timeout
from api.handlers import json_response
from api.idempotency import json_fingerprint
from api.metrics import JobTimer
from api.queue_client import QueueClient
from api.requests import ignored_params, jobs_from_request, parse_body
from api.responses import body_from_results, response_id
from api.services import OWNER, services
from api.sse import EventStream
from schemas.messages import Job, Result

IGNORED_PARAMS = "x-headrace-ignored-params"
MAX_NAMED = 50
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


async def generate(request: Request, endpoint: str) -> Response:
    """Answer a completion request. Raises ApiError before anything has been sent."""
    shared = services(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    parsed = parse_body(endpoint, body)
    await shared.models.require(parsed.model)
    job_id = secrets.token_hex(16)
    # Should this process die, no worker takes up what nobody waits for any more.
    deadline = time.time() + shared.settings.request_timeout
    jobs = jobs_from_request(parsed, job_id=job_id, owner=OWNER, deadline=deadline)
    shared.admission.admit(parsed.model, json_fingerprint(endpoint, body), len(jobs))
    body_id = response_id(endpoint, job_id)
    headers = _ignored_header(ignored_params(endpoint, parsed))
    timer = JobTimer(shared.metrics, parsed.model, sum(job.sampling.n for job in jobs))
    if parsed.stream:
        created = int(time.time())
        writer = ChunkWriter(endpoint, body_id, created, parsed.model, include_usage=parsed.include_usage)
        return EventStream(
            shared.client, jobs, writer, shared.settings, timer, include_usage=parsed.include_usage, headers=headers
        )
    work = _whole(shared.client, jobs, shared.settings.request_timeout)
    try:
        with timer:
            results = await until_disconnect(request.receive, work)
            for result in results:
                timer.used(result.usage)
    except ClientGone:
        return Response(status_code=499)
    return json_response(body_from_results(endpoint, body_id, results), headers=headers)


async def _whole(client: QueueClient, jobs: Sequence[Job], timeout: float) -> list[Result]:
    """The jobs' Results in order. Raises ApiError at the first that failed, and 504 after `timeout` seconds."""
    results: dict[str, Result] = {}
    try:
        async with asyncio.timeout(timeout), client.submit(*jobs) as stream:
            async for event in stream:
                if isinstance(event, Result):
                    if (error := error_of(event)) is not None:
                        raise error
                    results[event.job] = event
    except TimeoutError:
        raise request_timeout() from None
    return [results[job.id] for job in jobs]


def _ignored_header(names: list[str]) -> dict[str, str]:
    """Names come from the client: only what a header may hold is echoed."""
    safe = [_UNSAFE.sub("_", name[:100]) for name in names[:MAX_NAMED]]
    return {IGNORED_PARAMS: ", ".join(safe)} if safe else {}
