"""From an HTTP body, or a batch line's body, to Jobs."""

from __future__ import annotations

import secrets
from typing import Any, TypeVar

from pydantic import ValidationError

from api.errors import NOT_FOUND, ApiError, from_validation, unsupported_parameter
from api.store.records import job_ids
from schemas.messages import MAX_ID_LENGTH, Job, SamplingParams
from schemas.openai.chat import ChatRequest
from schemas.openai.common import GenerationRequest
from schemas.openai.completions import CompletionRequest, Prompt
from schemas.openai.unsupported import CHAT, COMPLETIONS, first_unsupported

CHAT_COMPLETIONS = "/v1/chat/completions"
PLAIN_COMPLETIONS = "/v1/completions"

_UNSUPPORTED = {CHAT_COMPLETIONS: CHAT, PLAIN_COMPLETIONS: COMPLETIONS}

DEFAULT_COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions where none is given, as OpenAI has it; chat may fill the context."""
SEED_RANGE = 2**31

R = TypeVar("R", bound=GenerationRequest)

_SAME_NAMES = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
    "bad_words",
    "allowed_token_ids",
)
_JOB_NAMES = (
    "add_special_tokens",
    "truncate_prompt_tokens",
    "echo",
    "return_token_ids",
    "priority",
    "cache_salt",
)
"""Parameters that are the job's own, under the same names."""


def parse_body(endpoint: str, body: Any) -> ChatRequest | CompletionRequest:
    """Validate a decoded JSON body. Raises ApiError 400 that names the parameter, 404 for another endpoint."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body should be a JSON object.", code="invalid_type")
    if endpoint not in _UNSUPPORTED:
        raise ApiError(404, f"No such endpoint: {endpoint[:200]}", NOT_FOUND, param="url", code="invalid_url")
    if (name := first_unsupported(body, _UNSUPPORTED[endpoint])) is not None:
        raise unsupported_parameter(name)
    if endpoint == PLAIN_COMPLETIONS:
        return _validate(CompletionRequest, body)
    _refuse_unsupported_messages(body)
    return _validate(ChatRequest, body)


def ignored_params(endpoint: str, request: ChatRequest | CompletionRequest) -> list[str]:
    """Fields given that changed nothing because nobody here knows them."""
    return [name for name in request.ignored_params() if name not in _UNSUPPORTED[endpoint]]


def job_from_body(endpoint: str, body: Any, *, job_id: str, owner: str = "") -> Job:
    """The one Job of a body whose output is wanted whole (a batch line). Raises ApiError, also for `stream` and for
    more than one prompt."""
    request = parse_body(endpoint, body)
    for name in ("stream", "request_id"):
        if getattr(request, name):
            raise ApiError(400, f"'{name}' is not supported here.", param=name, code="unsupported_parameter")
    jobs = jobs_from_request(request, job_id=job_id, owner=owner)
    if len(jobs) > 1:
        raise ApiError(400, "Give one prompt: several are not supported here.", param="prompt", code="invalid_value")
    return jobs[0]


def jobs_from_request(
    request: ChatRequest | CompletionRequest, *, job_id: str, owner: str = "", deadline: float | None = None
) -> list[Job]:
    """One Job a prompt. Several are named `job_id`-0, `job_id`-1, ...; one is `job_id`. `deadline` in Unix seconds."""
    if len(job_id) > MAX_ID_LENGTH - len("-0000"):
        raise ValueError(f"job id longer than {MAX_ID_LENGTH - 5} characters: {job_id}")
    if isinstance(request, ChatRequest):
        return [_chat_job(request, job_id, owner, deadline)]
    prompts = request.prompt
    ids = job_ids(job_id, len(prompts))
    return [_completion_job(request, prompt, id, owner, deadline) for prompt, id in zip(prompts, ids, strict=True)]


def sampling_params(request: ChatRequest | CompletionRequest) -> SamplingParams:
    """Parameters as the engine takes them. A seed is drawn where the caller gave none, so that a redelivered job goes
    on as it began. Raises ApiError."""
    given = {name: value for name in _SAME_NAMES if (value := getattr(request, name)) is not None}
    seed = secrets.randbelow(SEED_RANGE) if request.seed is None else request.seed
    max_tokens = _max_tokens(request)
    if max_tokens is not None and (request.min_tokens or 0) > max_tokens:
        message = f"'min_tokens' must not exceed the limit of {max_tokens} tokens."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    return SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        logit_bias=bias,
        logprobs=_logprobs(request),
        grammar=request.grammar(),
        best_of=request.best_of if isinstance(request, CompletionRequest) else None,
        **given,
    )


def _validate(kind: type[R], body: dict[str, Any]) -> R:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None


def _refuse_unsupported_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        if isinstance(message, dict):
            _refuse_unsupported_message(message, f"messages[{index}]")


def _refuse_unsupported_message(message: dict[str, Any], where: str) -> None:
    """What came before tool calls, and content parts other than text."""
    if message.get("function_call"):
        raise unsupported_parameter(f"{where}.function_call")
    if message.get("role") == "function":
        raise unsupported_parameter(f"{where}.role")
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise unsupported_parameter(f"{where}.content[{index}].type")


def _chat_job(request: ChatRequest, job_id: str, owner: str, deadline: float | None) -> Job:
    return Job(
        id=job_id,
        model=request.model,
        messages=[message.plain() for message in request.messages],
        template_kwargs=request.template_kwargs(),
        chat_template=request.chat_template,
        tools=[tool.plain() for tool in request.tools or []],
        tool_choice=request.choice,
        tool_name=request.named,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        sampling=sampling_params(request),
        stream=bool(request.stream),
        owner=owner,
        deadline=deadline,
        **_job_params(request),
    )


def _completion_job(request: CompletionRequest, prompt: Prompt, job_id: str, owner: str, deadline: float | None) -> Job:
    return Job(
        id=job_id,
        model=request.model,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=None if isinstance(prompt, str) else prompt,
        sampling=sampling_params(request),
        stream=bool(request.stream),
        owner=owner,
        deadline=deadline,
        **_job_params(request),
    )


def _job_params(request: GenerationRequest) -> dict[str, Any]:
    return {name: value for name in _JOB_NAMES if (value := getattr(request, name)) is not None}


def _max_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return request.max_completion_tokens or request.max_tokens
    return request.max_tokens or max(DEFAULT_COMPLETION_TOKENS, request.min_tokens or 0)


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """How many alternatives to report; None for no log probabilities at all."""
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return (request.top_logprobs or 0) if request.logprobs else None
