"""/v1/batches: create, list, retrieve, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from api.auth import owner_of
from api.bodies import read_json
from api.errors import ApiError, from_validation
from api.idempotency import REPLAYED, idempotency_key, json_fingerprint, once
from api.routes.openapi import error_responses, json_body
from api.services import services
from api.store import BatchRecord, Store
from api.store.ids import new_id
from schemas.messages import Usage
from schemas.openai.batches import (
    BatchErrorItem,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchRequest,
    BatchTokensDetails,
    BatchUsage,
    RequestCounts,
)

router = APIRouter(prefix="/v1/batches", tags=["batches"])

SAME_NAMES = (
    "id",
    "endpoint",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "metadata",
)


@router.post("", responses=error_responses(400, 404, 409), openapi_extra=json_body(BatchRequest))
async def create_batch(request: Request, response: Response) -> BatchObject:
    """Accept a batch: it is stored when this answers; its lines are validated and sent out from then on. With an
    Idempotency-Key, the same request gets the same batch."""
    shared, owner = services(request), owner_of(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    try:
        wanted = BatchRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None
    record, is_replay = await once(
        shared.store,
        owner,
        idempotency_key(request),
        json_fingerprint(router.prefix, body),
        new_id("batch_"),
        get=lambda batch_id: shared.store.batches.get(owner, batch_id),
        create=lambda batch_id: _create(shared.store, owner, wanted, batch_id),
    )
    if is_replay:
        response.headers.update(REPLAYED)
    return _object(record)


async def _create(store: Store, owner: str, wanted: BatchRequest, batch_id: str) -> BatchRecord:
    file = await store.files.get(owner, wanted.input_file_id)
    if file.purpose != "batch":
        message = f"File '{file.id}' has purpose '{file.purpose}', a batch needs 'batch'."
        raise ApiError(400, message, param="input_file_id", code="invalid_value")
    expiry = wanted.output_expires_after
    return await store.batches.create(
        owner,
        input_file_id=wanted.input_file_id,
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        metadata=wanted.metadata,
        output_expires_after=expiry.seconds if expiry else None,
        batch_id=batch_id,
    )


@router.get("", responses=error_responses(400))
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> BatchList:
    """Batches, newest first, a page at a time."""
    page = await services(request).store.batches.list(owner_of(request), limit=limit, after=after)
    data = [_object(record) for record in page.data]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get("/{batch_id}", responses=error_responses(404))
async def retrieve_batch(request: Request, batch_id: str) -> BatchObject:
    """A batch as it stands, with the ids of its output files once they are there."""
    return _object(await services(request).store.batches.get(owner_of(request), batch_id))


@router.post("/{batch_id}/cancel", responses=error_responses(400, 404))
async def cancel_batch(request: Request, batch_id: str) -> BatchObject:
    """Send no more lines and cancel those that run; what has been made stays in the output file."""
    return _object(await services(request).store.batches.cancel(owner_of(request), batch_id))


def _object(record: BatchRecord) -> BatchObject:
    errors = [
        BatchErrorItem(code=error.code, message=error.message, param=error.param, line=error.line)
        for error in record.errors
    ]
    return BatchObject(
        **{name: getattr(record, name) for name in SAME_NAMES},
        errors=BatchErrors(data=errors) if errors else None,
        request_counts=RequestCounts(total=record.total, completed=record.completed, failed=record.failed),
        usage=_usage(record.usage),
    )


def _usage(usage: Usage) -> BatchUsage:
    return BatchUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=BatchTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
