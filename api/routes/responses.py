"""/v1/responses: create, retrieve (also as a stream), list input items, cancel, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.auth import owner_of
from api.errors import ApiError
from api.handlers import json_response
from api.metrics import JobTimer
from api.response_api.body import response_body
from api.response_api.create import create, source_of
from api.response_api.events import EventWriter
from api.response_api.request import RESPONSES
from api.response_api.stream import ResponseStream
from api.routes.openapi import error_responses, json_body
from api.services import services
from api.store import ResponseRecord
from schemas.messages import Job, Result
from schemas.openai.responses import InputItemList, ResponseDeleted, ResponseObject, ResponseRequest

router = APIRouter(prefix=RESPONSES, tags=["responses"])

OBJECT: dict[int | str, dict[str, Any]] = {200: {"model": ResponseObject}}


@router.post(
    "",
    responses={**OBJECT, **error_responses(400, 404, 409, 413, 429, 503, 504)},
    openapi_extra=json_body(ResponseRequest),
)
async def create_response(request: Request) -> Response:
    """Answer a conversation, whole, as server-sent events, or in the background."""
    return await create(request)


@router.get("/{response_id}", responses={**OBJECT, **error_responses(400, 404)})
async def retrieve_response(
    request: Request,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> Response:
    """A response as it stands; with `stream` its events from the beginning, or those behind number `starting_after`."""
    record, result = await services(request).store.responses.get(owner_of(request), response_id)
    if stream:
        return _stream(request, record, result, -1 if starting_after is None else starting_after)
    return json_response(response_body(record, result))


def _stream(request: Request, record: ResponseRecord, result: Result | None, after: int) -> Response:
    shared = services(request)
    source = source_of(shared, record, result)
    if source is None:
        message = "A response that is not in the background is streamed to whoever asked for it, until it has ended."
        raise ApiError(400, message, param="stream", code="not_background")
    model = record.request["model"]
    return ResponseStream(
        source,
        Job(id=record.job_id, model=model, prompt="", stream=True),
        EventWriter(record, after),
        shared.settings,
        JobTimer(shared.metrics, model, 1, is_replay=True),
        timeout=shared.settings.request_timeout,
        hold=False,
        headers={},
    )


@router.get("/{response_id}/input_items", responses={200: {"model": InputItemList}, **error_responses(400, 404)})
async def list_input_items(
    request: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """What the response itself was given, without what came before it."""
    record, _ = await services(request).store.responses.get(owner_of(request), response_id)
    items = record.input if order == "asc" else record.input[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        items = items[ids.index(after) + 1 :] if after in ids else []
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    listed = {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(items) > limit}
    return json_response(listed)


@router.post("/{response_id}/cancel", responses={**OBJECT, **error_responses(400, 404)})
async def cancel_response(request: Request, response_id: str) -> Response:
    """Stop a background response. One that has ended stays as it is."""
    shared, owner = services(request), owner_of(request)
    record, result = await shared.store.responses.get(owner, response_id)
    if not record.request["background"]:
        message = "Only a background response can be cancelled."
        raise ApiError(400, message, param="response_id", code="not_cancellable")
    if result is None:
        record, result = await shared.store.responses.cancel(owner, response_id)
        if record.cancelled_at is not None:
            shared.client.cancel(record.job_id)
    return json_response(response_body(record, result))


@router.delete("/{response_id}", responses=error_responses(404))
async def delete_response(request: Request, response_id: str) -> ResponseDeleted:
    """Forget a response with its output, and stop it if it runs."""
    shared = services(request)
    record = await shared.store.responses.delete(owner_of(request), response_id)
    shared.client.cancel(record.job_id)
    return ResponseDeleted(id=record.id, deleted=True)
