"""/v1/files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from schemas.openai.common import StrictModel

Purpose = Literal["batch", "batch_output", "assistants", "fine-tune", "vision", "user_data", "evals"]
UPLOAD_PURPOSES = ("batch", "assistants", "fine-tune", "vision", "user_data", "evals")

MIN_EXPIRY = 3600
MAX_EXPIRY = 2_592_000


class ExpiresAfter(StrictModel):
    """`seconds` after the creation, an hour to thirty days."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY, le=MAX_EXPIRY)]


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool
