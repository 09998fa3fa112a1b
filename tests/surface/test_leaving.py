"""Clients that leave free what they held, within a second, however many leave at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

from tests.surface.conftest import MODEL, Surface

CLIENTS = 200
SECONDS = 1.0


async def connect(surface: Surface, index: int) -> asyncio.StreamWriter:
    """A streamed request under way, on a connection of its own."""
    host, port = surface.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = {"model": MODEL, "prompt": [5 + index], "max_tokens": 240, "ignore_eos": True, "stream": True}
    content = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
    await writer.drain()
    return writer


async def load(surface: Surface) -> int:
    """Requests that run, wait in the engine, or wait in their queue."""
    return surface.engine.load + await surface.queued()


async def seconds_until(surface: Surface, is_reached: Callable[[int], bool]) -> float:
    """How long it takes until there are as many as that; fails after half a minute."""
    began = time.monotonic()
    for _ in range(3000):
        if is_reached(await load(surface)):
            return time.monotonic() - began
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {await load(surface)} requests")


async def test_two_hundred_leave_at_once(surface: Surface) -> None:
    writers = await asyncio.gather(*(connect(surface, index) for index in range(CLIENTS)))
    try:
        await seconds_until(surface, lambda requests: requests > CLIENTS * 3 // 4)  # some may have ended by now
        await surface.engine.until_added(4)
    finally:
        for writer in writers:
            writer.transport.abort()
    assert await seconds_until(surface, lambda requests: requests == 0) < SECONDS
    answer = await surface.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] > 0
