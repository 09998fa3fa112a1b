"""Clients that leave free what they held, within a second, however many leave at once."""

from __future__ import annotations

import asyncio
import json
import time

from tests.surface.conftest import MODEL, Surface

CLIENTS = 200
SECONDS = 1.0


async def connect(surface: Surface, index: int) -> asyncio.StreamWriter:
    """A streamed request under way, on a connection of its own."""
    host, port = surface.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = {"model": MODEL, "prompt": [5 + index], "max_tokens": 200, "ignore_eos": True, "stream": True}
    content = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
    await writer.drain()
    return writer


async def test_two_hundred_leave_at_once(surface: Surface) -> None:
    writers = await asyncio.gather(*(connect(surface, index) for index in range(CLIENTS)))
    async with asyncio.timeout(60):
        while surface.engine.load + await surface.queued() < CLIENTS:
            await asyncio.sleep(0.01)
    assert surface.engine.load > 0
    for writer in writers:
        writer.transport.abort()
    began = time.monotonic()
    while (surface.engine.load or await surface.queued()) and time.monotonic() - began < 20:
        await asyncio.sleep(0.01)
    assert time.monotonic() - began < SECONDS
    answer = await surface.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] > 0
