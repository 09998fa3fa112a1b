"""/metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from api.probes import measure
from api.services import services

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Everything counted here, with the queues and services as they are now."""
    shared = services(request)
    await measure(shared)
    return Response(shared.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})
