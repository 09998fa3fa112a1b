"""A lean HTTP/1.1 client for streamed completions: one request at a time on a connection, and the times at which bytes
came. It parses as little as a measurement needs, so that it is not what is measured."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec

CONNECT_TIMEOUT = 30.0
IDLE_SECONDS = 2.0
"""A connection that idled longer is not used again: the server may be closing it at this moment."""
TAIL_BYTES = 4000
"""How much of a stream's end is kept: it holds the usage, or the error."""


@dataclass(slots=True)
class Outcome:
    """What one request came to, in seconds of `time.perf_counter`. `first` and `last` are the arrivals of the first and
    last bytes of the body (comments do not count), `gaps` the times between arrivals. `error` names the kind of failure,
    `retry_after` is what the header of that name says, in seconds."""

    started: float
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None
    retry_after: float | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    """Of an event, what matters at a stream's end."""

    usage: _Usage | None = None
    error: dict[str, object] | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Connection(asyncio.Protocol):
    """One connection to the server; `exchange` sends a request and waits for the end of its answer."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.closed = False
        self._transport: asyncio.WriteTransport | None = None
        self._keep_alive = False
        self._done: asyncio.Future[None] | None = None

    async def exchange(self, request: bytes, timeout: float) -> Outcome:
        """The outcome of one request, whatever it is."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._tail = b""
        self._outcome = outcome = Outcome(time.perf_counter())
        self._transport.write(request)
        try:
            async with asyncio.timeout(timeout):
                await self._done
        except TimeoutError:
            outcome.error = "timeout"
            self.close()
        else:
            self._conclude(outcome)
        if not self._keep_alive:
            self.close()
        self.idle_since = time.perf_counter()
        return outcome

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _conclude(self, outcome: Outcome) -> None:
        status = self._parser.get_status_code()
        if outcome.error is not None:
            return
        if status != 200:
            outcome.error = f"http {status}"
            return
        for line in self._tail.split(b"\n"):
            if line.startswith(b"data: {"):
                self._read_event(line[6:], outcome)
        if outcome.error is None and not outcome.tokens:
            outcome.error = "no usage at the end"

    def _read_event(self, event: bytes, outcome: Outcome) -> None:
        chunk = _decode_chunk(event)
        if chunk.usage is not None:
            outcome.tokens = chunk.usage.completion_tokens
        if chunk.error is not None:
            outcome.error = f"error event {chunk.error.get('code')}"

    # asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._outcome.error = f"not HTTP: {error}"
            self._finish()
            return
        if body := self._body:
            self._body = b""
            if not body.startswith(b":"):
                self._arrived(now)
            self._tail = body if len(body) > TAIL_BYTES else self._tail[-TAIL_BYTES:] + body

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._done is not None and not self._done.done():
            self._outcome.error = "connection lost"
            self._finish()

    def _arrived(self, now: float) -> None:
        outcome = self._outcome
        if outcome.first:
            outcome.gaps.append(now - outcome.last)
        else:
            outcome.first = now
        outcome.last = now

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._outcome.retry_after = float(value)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        self._finish()


class StreamingClient:
    """Requests to one server over as many connections as are needed at a time, each used again and again."""

    def __init__(self, host: str, port: int, path: str, key: str = "", *, timeout: float) -> None:
        self._host, self._port = host, port
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n{authorization}"
        ).encode()
        self._timeout = timeout
        self._idle: deque[Connection] = deque()

    async def stream(self, body: bytes) -> Outcome:
        """Send one request. Connecting, where it must, counts as part of it."""
        started = time.perf_counter()
        try:
            connection = await self._connection()
        except (OSError, TimeoutError):
            return Outcome(started, error="no connection")
        outcome = await connection.exchange(
            self._head + b"content-length: %d\r\n\r\n" % len(body) + body, self._timeout
        )
        outcome.started = started
        if not connection.closed:
            self._idle.append(connection)
        return outcome

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and time.perf_counter() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, made = await loop.create_connection(Connection, self._host, self._port)
        return made
