"""Where every error becomes an answer, and where every answer gets its request id."""

from __future__ import annotations

import logging
import re
import secrets
from http import HTTPStatus

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.bodies import too_large
from api.disconnect import ClientGone
from api.errors import NOT_FOUND, SERVER, ApiError, from_http_status, internal_error, param_name
from api.metrics import Metrics
from api.store import FileTooLarge, NotCancellable, NotFound, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
ANSWER_HEADERS = "answer_headers"
"""Key of a request's state: headers that its answer gets, whatever it turns out to be."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_encode = msgspec.json.Encoder().encode


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(body), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """The answer for `error`."""
    headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:g}"}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)


def install(app: FastAPI) -> None:
    """Shape everything that routes raise, and what the framework itself finds wrong."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code in (404, 405):
            detail = f"{detail}: {request.method} {request.url.path[:200]}"
        response = error_response(from_http_status(error.status_code, detail))
        response.headers.update(error.headers or {})
        return response

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = param_name(first["loc"][1:])
        return error_response(ApiError(400, f"Invalid '{param}': {first['msg']}.", param=param, code="invalid_value"))

    async def store_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, StoreError)
        return error_response(from_store(error))

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(StoreError, store_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(ClientGone, gone)


def from_store(error: StoreError) -> ApiError:
    """What the client learns of a store's error; the cause of an outage is for the log."""
    if isinstance(error, NotFound):
        return ApiError(404, f"No such {error.kind}: {error.id[:128]}", NOT_FOUND, param="id", code="not_found")
    if isinstance(error, FileTooLarge):
        return too_large(error.limit)
    if isinstance(error, NotCancellable):
        return ApiError(400, f"{error}.", param="id", code="not_cancellable")
    log.error("store: %s", error)
    if isinstance(error, StoreUnavailable):
        message = "The store is not available. Try again in a moment."
        return ApiError(503, message, SERVER, code="store_unavailable", retry_after=2)
    return ApiError(400, "The store cannot hold these values.", code="invalid_value")


class RequestContext:
    """Outermost: x-request-id in and out, one count a request, and 500 without a trace for what nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers.update(scope["state"].get(ANSWER_HEADERS, {}))
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            log.exception("request %s %s %s failed", request_id, scope["method"], scope["path"])
            if status:
                raise
            await error_response(internal_error(request_id))(scope, receive, tagged)
        finally:
            self._metrics.requests.labels(_route(scope), _method(scope), status).inc()


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def _route(scope: Scope) -> str:
    """The route's template, so that ids in paths do not become labels."""
    return getattr(scope.get("route"), "path", "unknown")


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "other"
