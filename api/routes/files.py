"""/v1/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from api.auth import owner_of
from api.bodies import check_announced, limited
from api.errors import ApiError, from_validation
from api.idempotency import REPLAYED, fingerprint, idempotency_key, once
from api.routes.openapi import error_responses
from api.services import services
from api.store import FileRecord, Store
from api.store.ids import new_id
from schemas.openai.files import (
    MAX_EXPIRY,
    MIN_EXPIRY,
    UPLOAD_PURPOSES,
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
)

router = APIRouter(prefix="/v1/files", tags=["files"])

CHUNK = 1 << 18
FORM_OVERHEAD = 1 << 16
"""Bytes that a multipart form may hold beside its file."""
MAX_FILENAME = 255

FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "example": {"file": "@lines.jsonl", "purpose": "batch"},
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(UPLOAD_PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY, "maximum": MAX_EXPIRY},
                    },
                },
            }
        },
    }
}

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post("", responses=error_responses(400, 409, 413), openapi_extra=FORM_BODY)
async def upload_file(request: Request, response: Response) -> FileObject:
    """Keep a file. It is spooled to disk while it comes, so that memory stays flat; the form's fields may come in any
    order. With an Idempotency-Key, the same upload gets the same file."""
    shared, owner = services(request), owner_of(request)
    key = idempotency_key(request)
    limit = shared.settings.max_file_bytes
    await check_announced(request, limit + FORM_OVERHEAD)
    form = await _form(Request(request.scope, limited(request, limit + FORM_OVERHEAD)))
    try:
        upload = _upload_of(form)
        record, is_replay = await once(
            shared.store,
            owner,
            key,
            await _fingerprint(upload) if key is not None else "",
            new_id("file-"),
            get=lambda file_id: shared.store.files.get(owner, file_id),
            create=lambda file_id: _create(shared.store, owner, upload, limit, file_id),
        )
    finally:
        await form.close()
    if is_replay:
        response.headers.update(REPLAYED)
    return _object(record)


async def _create(store: Store, owner: str, upload: _Upload, limit: int, file_id: str) -> FileRecord:
    return await store.files.create(
        _chunks(upload.file),
        owner=owner,
        filename=upload.filename,
        purpose=upload.purpose,
        limit=limit,
        expires_after=upload.expires_after,
        file_id=file_id,
    )


async def _fingerprint(upload: _Upload) -> str:
    """Of all that makes up the file; the form's boundary, which differs each time, does not."""
    digest = hashlib.blake2b(digest_size=16)
    async for chunk in _chunks(upload.file):
        await asyncio.to_thread(digest.update, chunk)
    await upload.file.seek(0)
    named = (router.prefix, upload.filename, upload.purpose, str(upload.expires_after), digest.hexdigest())
    return fingerprint(*(part.encode() for part in named))


@router.get("", responses=error_responses(400))
async def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> FileList:
    """Files, newest first, a page at a time."""
    page = await services(request).store.files.list(
        owner_of(request), purpose=purpose, limit=limit, order=order, after=after
    )
    data = [_object(record) for record in page.data]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get("/{file_id}", responses=error_responses(404))
async def retrieve_file(request: Request, file_id: str) -> FileObject:
    """What is known of a file, without its bytes."""
    return _object(await services(request).store.files.get(owner_of(request), file_id))


@router.get("/{file_id}/content", response_class=Response, responses={**BYTES, **error_responses(404)})
async def file_content(request: Request, file_id: str) -> Response:
    """The file's bytes. The length goes ahead, so that a reader can tell when a store failed half-way."""
    files = services(request).store.files
    record = await files.get(owner_of(request), file_id)
    headers = {"content-length": str(record.bytes)}
    return StreamingResponse(files.content(owner_of(request), file_id), 200, headers, "application/octet-stream")


@router.delete("/{file_id}", responses=error_responses(404))
async def delete_file(request: Request, file_id: str) -> FileDeleted:
    """Forget a file and its bytes."""
    await services(request).store.files.delete(owner_of(request), file_id)
    return FileDeleted(id=file_id, deleted=True)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=8)
    except HTTPException as error:
        raise ApiError(400, f"The form is not valid: {error.detail}", code="invalid_form") from None


class _Upload(NamedTuple):
    """What a form brings; `expires_after` in seconds."""

    file: UploadFile
    filename: str
    purpose: str
    expires_after: int | None


def _upload_of(form: FormData) -> _Upload:
    """Raises ApiError 400."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        message = "Missing required parameter: 'file', a file in a multipart/form-data body."
        raise ApiError(400, message, param="file", code="missing_required_parameter")
    purpose = form.get("purpose")
    if purpose is None:
        raise ApiError(
            400, "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if purpose not in UPLOAD_PURPOSES or not isinstance(purpose, str):
        message = f"Invalid 'purpose': should be one of {', '.join(UPLOAD_PURPOSES)}."
        raise ApiError(400, message, param="purpose", code="invalid_value")
    return _Upload(file, (file.filename or "upload")[:MAX_FILENAME], purpose, _expiry(form))


def _expiry(form: FormData) -> int | None:
    given: dict[str, Any] = {
        name: form[f"expires_after[{name}]"] for name in ("anchor", "seconds") if f"expires_after[{name}]" in form
    }
    if not given:
        return None
    try:
        return ExpiresAfter.model_validate(given, strict=False).seconds
    except ValidationError as error:
        raise from_validation(error, "expires_after") from None


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(CHUNK):
        yield chunk


def _object(record: FileRecord) -> FileObject:
    fields = asdict(record)
    del fields["owner"]
    return FileObject(**fields)
