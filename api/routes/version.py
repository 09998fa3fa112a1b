"""GET /version."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import BaseModel

router = APIRouter(tags=["health"])

VERSION = version("headrace")


class VersionBody(BaseModel):
    version: str


@router.get("/version")
async def get_version() -> VersionBody:
    """The version of this service."""
    return VersionBody(version=VERSION)
