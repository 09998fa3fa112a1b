"""/health: this process is alive. /ready: it can take a request."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.errors import SERVER, ApiError
from api.handlers import json_response
from api.probes import not_ready
from api.routes.openapi import error_responses
from api.services import services

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Answers as long as the process runs, whatever the services behind it do."""
    return {"status": "ok"}


@router.get("/ready", responses=error_responses(503))
async def ready(request: Request) -> Response:
    """200 when broker and store answer and a worker is there; else 503 with every reason."""
    reasons = await not_ready(services(request))
    if not reasons:
        return json_response({"status": "ready"})
    error = ApiError(503, "; ".join(reasons), SERVER, code="not_ready")
    return json_response({"status": "not_ready", "reasons": reasons, **error.body()}, 503)
