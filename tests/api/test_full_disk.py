"""No room in the store: what needs it is a 503 that says so, what does not goes on, and afterwards all is as before."""

from __future__ import annotations

import httpx

from api.store import Store
from tests.api.stub_worker import StubWorker
from tests.store.full_disk import full

CHAT = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}
FILE = {"file": ("lines.jsonl", b"x" * 500_000)}


async def test_doors_while_the_store_is_full(http: httpx.AsyncClient, worker: StubWorker, store: Store) -> None:
    async with full("sqlite"):
        refused = await http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
        answered = await http.post("/v1/chat/completions", json=CHAT)
        assert (await http.get("/v1/files")).json()["data"] == []
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert answered.status_code == 200
    kept = await http.post("/v1/files", data={"purpose": "batch"}, files=FILE)
    assert kept.status_code == 200
