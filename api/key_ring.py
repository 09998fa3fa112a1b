"""The API keys in force: a copy of the store's that is seconds old, so that no request waits for the store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from api.errors import ApiError
from api.store import Store, StoreError, StoreUnavailable
from api.store.api_keys import SECRET_PREFIX, secret_hash

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0
"""After so long a revoked key is refused everywhere."""
STALE_SECONDS = 300.0
"""For so long keys are believed while the store is away: inference does not need it otherwise."""
EAGER_SECONDS = 0.5
"""How often an unknown key makes the store be asked at once: a new key works from the start, and nobody can flood it."""
ANONYMOUS = ""
"""The owner of what is made without a key."""


class KeyRing:
    """The keys in force. While the store has never had a key, everybody is let in, unless keys are `required`.

    Keys stay necessary once there has been one: revoking the last one closes the service. `clock` gives seconds.
    """

    def __init__(self, store: Store, *, required: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._required = required
        self._clock = clock
        self._owners: dict[str, str] = {}
        self._any = False
        self._read_at: float | None = None
        self._tried_at = -REFRESH_SECONDS
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests without a key are let in."""
        return not (self._any or self._required)

    async def start(self) -> None:
        """Read the keys, now and every few seconds."""
        await self._refresh()
        self._task = asyncio.create_task(self._refresh_for_ever())

    async def close(self) -> None:
        """Read them no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def owner(self, authorization: str | None) -> str:
        """The id of the key in an Authorization header, ANONYMOUS where none is needed. Raises ApiError 401,
        StoreUnavailable while the keys are not known."""
        if self._read_at is None or self._clock() - self._read_at > STALE_SECONDS:
            raise StoreUnavailable("the API keys could not be read")
        if self.is_open:
            return ANONYMOUS
        secret = _secret(authorization)
        digest = secret_hash(secret)
        if digest not in self._owners and self._clock() - self._tried_at > EAGER_SECONDS:
            await self._refresh()
        owner = self._owners.get(digest)
        if owner is None:
            raise wrong_key(secret)
        return owner

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._refresh()

    async def _refresh(self) -> None:
        async with self._lock:
            self._tried_at = started = self._clock()
            try:
                keys = await self._store.api_keys.list()
            except StoreError as error:
                log.warning("API keys not read, those known count for now: %s", error)
                return
            self._owners = {key.hash: key.id for key in keys if key.revoked_at is None}
            self._any = bool(keys)
            self._read_at = started


def _secret(authorization: str | None) -> str:
    """The bearer token. Raises ApiError 401 where there is none."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        message = "You didn't provide an API key. Send it in a header: 'Authorization: Bearer YOUR_KEY'."
        raise ApiError(401, message, code="missing_api_key")
    return secret.strip()


def wrong_key(secret: str) -> ApiError:
    """A key that is not known here, or no longer. Of its secret no more is shown than says which one was meant."""
    shown = f"{SECRET_PREFIX}...{secret[-4:]}" if secret.startswith(SECRET_PREFIX) and secret.isascii() else "..."
    return ApiError(401, f"Incorrect API key provided: {shown}. It is unknown or revoked.", code="invalid_api_key")
