"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.generate import generate
from api.requests import PLAIN_COMPLETIONS
from api.routes.openapi import error_responses, json_body
from schemas.openai.completions import Completion, CompletionRequest

router = APIRouter(tags=["completions"])


@router.post(
    PLAIN_COMPLETIONS,
    responses={200: {"model": Completion}, **error_responses(400, 404, 409, 413, 429, 503, 504)},
    openapi_extra=json_body(CompletionRequest),
)
async def create_completion(request: Request) -> Response:
    """Continue one prompt or several, whole or as server-sent events."""
    return await generate(request, PLAIN_COMPLETIONS)
