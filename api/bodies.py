"""Reading request bodies within a limit, and their JSON."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from api.errors import ApiError

DRAIN_SECONDS = 20.0
DRAIN_BYTES = 1 << 30
"""How much of a refused body is read and thrown away: a client that is still sending when the connection closes sees a
reset instead of the answer."""


async def read_json(request: Request, limit: int) -> Any:
    """The body as JSON. Raises ApiError 413 above `limit` bytes, 400 for what is not JSON."""
    return parse_json(await read_body(request, limit))


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no lone surrogates. Raises ApiError 400 that says where it ends to be JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ApiError 413 above `limit` bytes, before reading where its length is announced."""
    await check_announced(request, limit)
    return b"".join([chunk async for chunk in Request(request.scope, limited(request, limit)).stream()])


async def check_announced(request: Request, limit: int) -> None:
    """Raises ApiError 413 where the announced length is above `limit`."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(request.receive)
        raise too_large(limit)


def limited(request: Request, limit: int) -> Receive:
    """The request's receive function, which raises ApiError 413 once more than `limit` bytes have come."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            if message.get("more_body"):
                await _drain(request.receive)
            raise too_large(limit)
        return message

    return receive


def too_large(limit: int) -> ApiError:
    """The answer to a body above `limit` bytes."""
    return ApiError(413, f"The body is larger than the limit of {limit} bytes.", code="body_too_large")


async def _drain(receive: Receive) -> None:
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                if not message.get("more_body"):
                    return
