"""Errors in OpenAI's shape: {"error": {message, type, param, code}}, all four keys, whatever went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from schemas.messages import ErrorInfo, Result

INVALID_REQUEST = "invalid_request_error"
NOT_FOUND = "not_found_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"

_CODES = {"missing": "missing_required_parameter", "invalid_type": "invalid_type"}


class ApiError(Exception):
    """An answer other than success. `retry_after` is in seconds, at most 120: the SDK gives up above that."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @classmethod
    def from_info(cls, info: ErrorInfo) -> ApiError:
        """The error that a worker reported."""
        return cls(info.status, info.message, info.type, info.param, info.code)

    def info(self) -> ErrorInfo:
        """The error as wire messages carry it."""
        return ErrorInfo(message=self.message, type=self.type, param=self.param, code=self.code, status=self.status)

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def unsupported_parameter(param: str) -> ApiError:
    """The parameter exists in OpenAI's API, would change the output, and is not served."""
    return ApiError(400, f"'{param}' is not supported by this service.", param=param, code="unsupported_parameter")


def broker_unavailable() -> ApiError:
    """No connection to the broker, no confirmation in time, or a stream that did not come back after it."""
    message = "The message broker is not available. Try again in a moment."
    return ApiError(503, message, SERVER, code="broker_unavailable", retry_after=2)


def model_not_found(model: str, served: Sequence[str] = ()) -> ApiError:
    """No worker serves `model`; `served` are some that are."""
    message = f"The model '{model}' does not exist or is not served here."
    if served:
        message += f" Served: {', '.join(served)}."
    return ApiError(404, message, NOT_FOUND, param="model", code="model_not_found")


def unsupported_model(model: str, *, embeddings: bool) -> ApiError:
    """The model makes text and is asked for `embeddings`, or the other way round."""
    makes, where = ("text", "/v1/chat/completions") if embeddings else ("embeddings", "/v1/embeddings")
    message = f"The model '{model}' makes {makes} and nothing else: use {where}."
    return ApiError(400, message, param="model", code="unsupported_model")


def from_http_status(status: int, detail: str) -> ApiError:
    """The error of a bare HTTP status: unknown route, wrong method."""
    if status == HTTPStatus.NOT_FOUND:
        return ApiError(status, detail, NOT_FOUND, code="not_found")
    kind = SERVER if status >= HTTPStatus.INTERNAL_SERVER_ERROR else INVALID_REQUEST
    return ApiError(status, detail, kind, code=HTTPStatus(status).phrase.lower().replace(" ", "_"))


def internal_error(request_id: str) -> ApiError:
    """An exception nobody expected: its cause is in the log under `request_id`, not in the answer."""
    return ApiError(500, f"Internal error. Quote request id {request_id} when reporting it.", SERVER, code="internal")


def param_name(location: Sequence[int | str], prefix: str = "") -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    name = prefix
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def from_validation(error: ValidationError, within: str = "") -> ApiError:
    """The first of a body's faults: the parameter (below `within`), what is wrong, and a code for the kind of fault."""
    first = error.errors(include_url=False, include_input=False)[0]
    location = list(first["loc"])
    named = first.get("ctx", {}).get("param")
    param = param_name([*location, named] if named else location, within) or None
    kind = first["type"]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    text = "Missing required parameter" if kind == "missing" else first["msg"]
    return ApiError(400, f"Invalid '{param}': {text}." if param else f"{text}.", param=param, code=code)


def error_of(result: Result) -> ApiError | None:
    """Why a job did not complete; None where it did."""
    if result.outcome == "completed":
        return None
    if result.outcome == "expired":
        return request_timeout()
    if result.error is not None:
        return ApiError.from_info(result.error)
    return ApiError(500, f"The request ended as {result.outcome}.", SERVER, code=result.outcome)


def request_timeout() -> ApiError:
    """The answer took longer than this service waits."""
    return ApiError(504, "The request took too long and was cancelled.", SERVER, code="request_timeout")


def shutting_down() -> ApiError:
    """This process ends before the answer has come."""
    return ApiError(503, "The service is shutting down.", SERVER, code="shutting_down")
