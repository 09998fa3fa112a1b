"""Who makes a request."""

from __future__ import annotations

from fastapi import Request

from api.services import services


async def authenticate(request: Request) -> None:
    """A dependency of every route that belongs to somebody: finds the owner by the Authorization header. Raises ApiError
    401, StoreUnavailable while the keys are not known."""
    request.state.owner = await services(request).key_ring.owner(request.headers.get("authorization"))


def owner_of(request: Request) -> str:
    """The owner that `authenticate` has found: an API key's id, or "" where no key was needed."""
    owner = request.state.owner
    assert isinstance(owner, str)
    return owner
