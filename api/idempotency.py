"""What makes two requests the same one, and the Idempotency-Key by which a client says so."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from api.errors import ApiError
from api.store import NotFound, Store

T = TypeVar("T")

HEADER = "idempotency-key"
NAME = "Idempotency-Key"
REPLAYED = {"idempotent-replayed": "true"}
MAX_KEY = 255

_encode = msgspec.json.Encoder(order="sorted").encode


def fingerprint(*parts: bytes) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def json_fingerprint(endpoint: str, body: Any) -> str:
    """Of a decoded JSON body: the order of its keys and its white space do not matter."""
    return fingerprint(endpoint.encode(), _encode(body))


def idempotency_key(request: Request) -> str | None:
    """The request's key, if it has one. Raises ApiError 400."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        message = f"The {NAME} is 1 to {MAX_KEY} printable ASCII characters."
        raise ApiError(400, message, param=NAME, code="invalid_value")
    return key


def key_reused() -> ApiError:
    """The key came before, with another request."""
    message = (
        f"This {NAME} was used for another request. Use a new key for each request, and the same one to repeat it."
    )
    return ApiError(409, message, param=NAME, code="idempotency_key_reused")


def in_progress() -> ApiError:
    """The request with this key is under way where this process cannot follow it."""
    message = f"The request with this {NAME} is still in progress. Ask again with the same key for its answer."
    return ApiError(409, message, param=NAME, code="idempotency_in_progress", retry_after=2)


async def once(
    store: Store,
    owner: str,
    key: str | None,
    mark: str,
    object_id: str,
    *,
    get: Callable[[str], Awaitable[T]],
    create: Callable[[str], Awaitable[T]],
) -> tuple[T, bool]:
    """The object that `create` makes under the id given to it, the first time; later what `get` finds under that id.
    The second value says whether it came before. Raises ApiError 409, StoreError, and whatever `create` raises."""
    if key is None:
        return await create(object_id), False
    record, is_mine = await store.keys.claim(owner, key, mark, object_id)
    if record.fingerprint != mark:
        raise key_reused()
    try:
        return await get(record.object_id), True
    except NotFound:
        if not is_mine and record.is_accepted:
            raise  # deleted since
        if not is_mine:
            raise in_progress() from None
    try:
        made = await create(record.object_id)
    except Exception:
        await store.keys.release(record)
        raise
    await store.keys.accept(record)
    return made, False
