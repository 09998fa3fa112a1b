"""The store: one database, its concerns."""

from __future__ import annotations

import time
from collections.abc import Callable

from api.store.api_keys import ApiKeys
from api.store.batches import Batches
from api.store.database import Database
from api.store.files import Files
from api.store.idempotency import IdempotencyKeys
from api.store.items import Items
from api.store.responses import Responses
from api.store.results import Results


class Store:
    """Files, batches, their items, results, idempotency keys and API keys; `clock` gives Unix seconds.

    `url` is postgresql://... or sqlite:///path; raises ValueError for any other. The schema is made beforehand by
    `api.store.migrate.upgrade`.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(url)
        self.clock = clock
        self.files = Files(self._database, clock)
        self.batches = Batches(self._database, clock)
        self.items = Items(self._database)
        self.results = Results(self._database, clock)
        self.keys = IdempotencyKeys(self._database, clock)
        self.api_keys = ApiKeys(self._database, clock)
        self.responses = Responses(self._database, clock)

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable."""
        await self._database.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()

    async def ping(self) -> None:
        """One round trip to the database. Raises StoreUnavailable."""
        await self._database.ping()
