"""What a batch can hold: how a line's body becomes a Job, and its Result the body of the answer, for each endpoint."""

from __future__ import annotations

import time
from typing import Any

from api.embeddings import EMBEDDINGS, embedding_job_from_line, embeddings_body, embeddings_id
from api.errors import ApiError
from api.requests import job_from_body
from api.response_api.body import response_body
from api.response_api.request import PREFIX, RESPONSES, job_of, new_record, parse_response
from api.responses import body_from_result
from api.store import ResponseRecord
from schemas.messages import Job, Result

_APART = ("stream", "background", "previous_response_id")
"""Parameters that make no sense in a line, or need more than the line."""
_NOT_KEPT = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
)


def job_from_line(endpoint: str, body: Any, *, job_id: str, owner: str = "") -> Job:
    """The Job of a line's body. Raises ApiError."""
    if endpoint == EMBEDDINGS:
        return embedding_job_from_line(body, job_id=job_id, owner=owner)
    if endpoint != RESPONSES:
        return job_from_body(endpoint, body, job_id=job_id, owner=owner)
    wanted = parse_response(body)
    for name in _APART:
        if getattr(wanted, name):
            raise ApiError(400, f"'{name}' is not supported in a batch.", param=name, code="unsupported_parameter")
    now = time.time()
    record = new_record(wanted, PREFIX + job_id, owner, created=now, deadline=now, defaults={})
    return job_of(wanted, record, [])


def body_from_line(endpoint: str, result: Result) -> dict[str, Any]:
    """The answer to a line that completed. Of a response it is what came of it: the ledger has no parameters, and they
    are null. It is in the batch's output alone, and cannot be retrieved."""
    if endpoint == EMBEDDINGS:
        return embeddings_body(embeddings_id(result.job), [result])
    if endpoint != RESPONSES:
        return body_from_result(endpoint, result)
    request = dict.fromkeys(_NOT_KEPT) | {"model": result.model, "background": False, "store": False}
    record = ResponseRecord(
        id=PREFIX + result.job,
        owner=result.owner,
        job_id=result.job,
        previous_id=None,
        request=request,
        input=[],
        created_at=result.created,
        deadline=result.created,
    )
    return response_body(record, result)
