"""/tokenize and /detokenize, with and without /v1."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from api.auth import owner_of
from api.bodies import read_json
from api.errors import ApiError, from_validation
from api.generate import ignored_header
from api.handlers import json_response
from api.requests import CHAT_COMPLETIONS, PLAIN_COMPLETIONS, ignored_params, jobs_from_request, parse_body
from api.routes.openapi import error_responses, json_body
from api.services import Services, services
from schemas.messages import Job, SamplingParams, TextAnswer
from schemas.openai.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

router = APIRouter(tags=["text"])

STATUSES = (400, 404, 413, 429, 503)
RETURN_TEXTS = "return_token_strs"


@router.post(
    "/v1/tokenize",
    responses={200: {"model": TokenizeResponse}, **error_responses(*STATUSES)},
    openapi_extra=json_body(TokenizeRequest),
)
@router.post("/tokenize", include_in_schema=False)
async def tokenize(request: Request) -> Response:
    """The token ids of a prompt or of a conversation, as the model would get them."""
    shared = services(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    with_texts = _take_flag(body, RETURN_TEXTS)
    endpoint = CHAT_COMPLETIONS if isinstance(body, dict) and "messages" in body else PLAIN_COMPLETIONS
    parsed = parse_body(endpoint, body)
    jobs = jobs_from_request(parsed, job_id=secrets.token_hex(16), owner=owner_of(request))
    if len(jobs) > 1:
        raise ApiError(400, "Give one prompt: several are not supported here.", param="prompt", code="invalid_value")
    answer = await _ask(shared, jobs[0])
    answered = TokenizeResponse(
        count=len(answer.token_ids),
        max_model_len=shared.models.get(parsed.model).max_model_len,
        tokens=answer.token_ids,
        token_strs=answer.tokens if with_texts else None,
    )
    return json_response(answered.model_dump(), headers=ignored_header(ignored_params(endpoint, parsed)))


@router.post(
    "/v1/detokenize",
    responses={200: {"model": DetokenizeResponse}, **error_responses(*STATUSES)},
    openapi_extra=json_body(DetokenizeRequest),
)
@router.post("/detokenize", include_in_schema=False)
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    shared = services(request)
    body = await read_json(request, shared.settings.max_body_bytes)
    try:
        wanted = DetokenizeRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None
    await shared.models.require(wanted.model)
    text = (await _ask(shared, _detokenize_job(wanted))).text if wanted.tokens else ""
    return json_response(DetokenizeResponse(prompt=text).model_dump(), headers=ignored_header(wanted.ignored_params()))


def _detokenize_job(wanted: DetokenizeRequest) -> Job:
    sampling = SamplingParams(skip_special_tokens=False)
    return Job(id=secrets.token_hex(16), model=wanted.model, prompt_token_ids=wanted.tokens, sampling=sampling)


async def _ask(shared: Services, job: Job) -> TextAnswer:
    await shared.models.require(job.model)
    workers = [status.worker for status in shared.models.workers() if status.model == job.model]
    return await shared.client.questions.ask(job, workers)


def _take_flag(body: Any, name: str) -> bool:
    """A field that only this endpoint has, taken out of the body. Raises ApiError 400."""
    value = body.pop(name, None) if isinstance(body, dict) else None
    if not isinstance(value, bool | None):
        raise ApiError(400, f"Invalid '{name}': Input should be a valid boolean.", param=name, code="invalid_type")
    return bool(value)
