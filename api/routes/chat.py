"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.generate import generate
from api.requests import CHAT_COMPLETIONS
from api.routes.openapi import error_responses, json_body
from schemas.openai.chat import ChatCompletion, ChatRequest

router = APIRouter(tags=["completions"])


@router.post(
    CHAT_COMPLETIONS,
    responses={200: {"model": ChatCompletion}, **error_responses(400, 404, 409, 413, 429, 503, 504)},
    openapi_extra=json_body(ChatRequest),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    return await generate(request, CHAT_COMPLETIONS)
