"""GET /docs: a page that shows /openapi.json. It loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

PAGE = Path(__file__).parents[1] / "pages" / "docs.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@router.get("/docs")
async def docs() -> FileResponse:
    """The API's documentation, for people."""
    return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers={"content-security-policy": POLICY})
