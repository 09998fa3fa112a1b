"""Embeddings: from a body to Jobs, and from their Results to the answer.

A request of many inputs becomes several jobs: they spread over the workers, and no message of theirs is too large for a
broker. A batch line is one job, as every line is.
"""

from __future__ import annotations

import sys
import time
from array import array
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from api.errors import ApiError, from_validation, unsupported_parameter
from api.store.records import job_ids
from schemas.messages import EmbeddingParams, Job, Result
from schemas.openai import unsupported
from schemas.openai.embeddings import EmbeddingRequest

EMBEDDINGS = "/v1/embeddings"
INPUTS_A_JOB = 128
"""Workers refuse jobs with more than 4 MiB of vectors: so none of these, up to 8192 dimensions."""


def parse_embeddings(body: Any) -> EmbeddingRequest:
    """Validate a decoded JSON body. Raises ApiError 400 that names the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body should be a JSON object.", code="invalid_type")
    if (name := unsupported.first_unsupported(body, unsupported.EMBEDDINGS)) is not None:
        raise unsupported_parameter(name)
    try:
        return EmbeddingRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None


def embedding_jobs(
    request: EmbeddingRequest,
    *,
    job_id: str,
    owner: str = "",
    deadline: float | None = None,
    inputs_a_job: int = INPUTS_A_JOB,
) -> list[Job]:
    """Jobs that share the inputs in their order. Several are named `job_id`-0, `job_id`-1, ...; one is `job_id`."""
    starts = range(0, len(request.input), inputs_a_job)
    wanted = EmbeddingParams(dimensions=request.dimensions, normalize=request.normalize)
    return [
        Job(
            id=name,
            model=request.model,
            inputs=request.input[start : start + inputs_a_job],
            embedding=wanted,
            add_special_tokens=request.add_special_tokens,
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            owner=owner,
            deadline=deadline,
        )
        for name, start in zip(job_ids(job_id, len(starts)), starts, strict=True)
    ]


def embedding_job_from_line(body: Any, *, job_id: str, owner: str = "") -> Job:
    """The one Job of a batch line. Raises ApiError."""
    request = parse_embeddings(body)
    if request.encoding_format == "base64":
        raise ApiError(
            400,
            "In a batch 'encoding_format' is float.",
            param="encoding_format",
            code="unsupported_parameter",
        )
    if request.request_id is not None:
        raise ApiError(400, "'request_id' is not supported here.", param="request_id", code="unsupported_parameter")
    return embedding_jobs(request, job_id=job_id, owner=owner, inputs_a_job=len(request.input))[0]


def embeddings_id(job_id: str) -> str:
    """The id of the answer to one request."""
    return f"embd-{job_id}"


def embeddings_body(body_id: str, results: Sequence[Result], *, base64: bool = False) -> dict[str, Any]:
    """The answer made of completed Results that carry their choices, in the order of the inputs."""
    tokens = sum(result.usage.prompt_tokens for result in results)
    return {
        "id": body_id,
        "object": "list",
        "created": int(results[0].created or time.time()),
        "model": results[0].model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(vector).decode() if base64 else floats(vector),
            }
            for index, vector in enumerate(_vectors(results))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vectors(results: Sequence[Result]) -> Iterator[bytes]:
    for result in results:
        for choice in sorted(result.choices, key=lambda choice: choice.index):
            assert choice.embedding is not None, f"job {result.job} brought no vector for input {choice.index}"
            yield choice.embedding


def floats(vector: bytes) -> list[float]:
    """The values of a vector of little-endian float32."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
