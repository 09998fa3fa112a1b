"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth import owner_of
from api.bodies import read_json
from api.embeddings import EMBEDDINGS, embedding_jobs, embeddings_body, embeddings_id, parse_embeddings
from api.generate import announce_room, ignored_header, open_jobs, results_of
from api.handlers import json_response
from api.idempotency import REPLAYED, json_fingerprint
from api.metrics import JobTimer
from api.routes.openapi import error_responses, json_body
from api.services import services
from api.timeouts import wanted_timeout
from schemas.messages import Job, Result
from schemas.openai import unsupported
from schemas.openai.embeddings import EmbeddingList, EmbeddingRequest

router = APIRouter(tags=["embeddings"])


@router.post(
    EMBEDDINGS,
    responses={200: {"model": EmbeddingList}, **error_responses(400, 404, 409, 413, 429, 503, 504)},
    openapi_extra=json_body(EmbeddingRequest),
)
async def create_embeddings(request: Request) -> Response:
    """Vectors of one input or several: texts, or lists of token ids."""
    shared, owner = services(request), owner_of(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    parsed = parse_embeddings(body)
    timeout = wanted_timeout(request, shared.settings.request_timeout)
    await shared.models.require(parsed.model, embeddings=True)
    deadline = time.time() + timeout

    def make(job_id: str) -> list[Job]:
        return embedding_jobs(parsed, job_id=job_id, owner=owner, deadline=deadline)

    try:
        opened = await open_jobs(request, parsed.model, json_fingerprint(EMBEDDINGS, body), make)
    finally:
        announce_room(request, parsed.model)
    timer = JobTimer(shared.metrics, parsed.model, len(opened.jobs), is_replay=opened.is_replay)
    results = await results_of(request, opened, timer, timeout)
    ignored = [name for name in parsed.ignored_params() if name not in unsupported.EMBEDDINGS]
    body_id = embeddings_id(parsed.request_id or opened.job_id)
    headers = ignored_header(ignored) | (REPLAYED if opened.is_replay else {})
    return await asyncio.to_thread(_answer, body_id, results, parsed.encoding_format == "base64", headers)


def _answer(body_id: str, results: list[Result], base64: bool, headers: dict[str, str]) -> Response:
    """In a thread: a million numbers take a tenth of a second to write."""
    return json_response(embeddings_body(body_id, results, base64=base64), headers=headers)
