"""An OpenAI-compatible server that says nothing worth hearing, at a pace: one write a token, on raw sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" word"}],"usage":null}\n\n'


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


class FakeConnection(asyncio.Protocol):
    """Answers each request: 429 for the model `full`, a failing stream for `broken`, a closed one for `cut`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._path = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request, self._body = json.loads(self._body), b""
        self._parser = httptools.HttpRequestParser(self)
        self._server.requests.append((self._path, request))
        self._server.start(self._answer(request))

    async def _answer(self, request: dict[str, Any]) -> None:
        write = self._transport.write
        if request["model"] == "full":
            write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\ncontent-length: 2\r\n\r\n{}")
            return
        await asyncio.sleep(self._server.first)
        write(HEAD)
        for _ in range(request["max_tokens"]):
            write(chunk(TOKEN))
            await asyncio.sleep(self._server.pace)
        if request["model"] == "broken":
            write(chunk(b'data: {"error":{"message":"x","code":"stream_gap"}}\n\n') + chunk(b""))
        elif request["model"] == "cut":
            self._transport.abort()
        else:
            usage = {"choices": [], "usage": {"completion_tokens": request["max_tokens"]}}
            write(chunk(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(usage).encode()) + chunk(b""))


class FakeServer:
    """`first` and `pace` in seconds: to the first token, and from each to the next."""

    def __init__(self, first: float = 0.0, pace: float = 0.0) -> None:
        self.first, self.pace = first, pace
        self.connections = 0
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def serving(server: FakeServer, port: int = 0) -> AsyncIterator[str]:
    """Its URL."""
    listening = await asyncio.get_running_loop().create_server(lambda: FakeConnection(server), "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
