"""The engine as the front sees it, and the one that runs in a process of its own.

Messages are collected and written once per turn of the event loop; an asyncio transport carries the bytes, so that
neither a large batch of prompts nor a slow engine blocks the loop. The framing is that of `multiprocessing.connection`:
the engine side uses an ordinary Connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, cast

from workers.engine.config import EngineConfig
from workers.protocol import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    LoadGrammars,
    Ready,
    Shutdown,
    StepOutput,
    ToEngine,
    from_engine_decoder,
    to_engine_encoder,
)

START_TIMEOUT = 1800.0
"""Seconds for loading a model, which may first come over the network."""
CLOSE_TIMEOUT = 10.0
HEADER = struct.Struct("!i")

StepHandler = Callable[[StepOutput], None]
EngineTarget = Callable[[Connection, EngineConfig], None]


class EngineStartError(Exception):
    """The engine cannot start; one line that says why."""


class EngineClient(Protocol):
    """An engine to which requests are given and which hands back one StepOutput per step."""

    @property
    def died(self) -> asyncio.Future[str]:
        """Resolves with the reason when the engine ends by itself. Made by `start`."""
        ...

    async def start(self) -> Ready:
        """Load the model. Raises EngineStartError."""
        ...

    def set_handler(self, handler: StepHandler) -> None:
        """Who gets each StepOutput, on the event loop."""
        ...

    def add(self, request: AddRequest) -> None: ...
    def abort(self, ids: list[str]) -> None: ...
    async def close(self) -> None:
        """End the engine; running requests are dropped."""
        ...


def run_engine(connection: Connection, config: EngineConfig) -> None:
    """What the engine process runs. Imported there only: the front stays free of torch."""
    from workers.engine.process import main

    main(connection, config)


class MessagePipe(asyncio.Protocol):
    """Length-prefixed messages over a stream socket."""

    def __init__(self, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            self._on_message(bytes(self._buffer[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()

    def send(self, body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEADER.pack(len(body)) + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ProcessEngine:
    """An engine in a process of its own, started by `spawn`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        target: EngineTarget = run_engine,
        start_timeout: float = START_TIMEOUT,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> None:
        self._config = config
        self._target = target
        self._start_timeout = start_timeout
        self._close_timeout = close_timeout
        self._handler: StepHandler = lambda step: None
        self._outgoing: list[ToEngine] = []
        self._process: BaseProcess | None = None
        self._pipe: MessagePipe | None = None
        self._closing = False

    @property
    def died(self) -> asyncio.Future[str]:
        return self._died

    def set_handler(self, handler: StepHandler) -> None:
        self._handler = handler

    def add(self, request: AddRequest) -> None:
        self._send(request)

    def abort(self, ids: list[str]) -> None:
        self._send(AbortRequests(ids))

    def load_grammars(self, tokenizer: str) -> None:
        """See LoadGrammars."""
        self._send(LoadGrammars(tokenizer))

    async def spawn(self) -> None:
        """Start the process, which begins to load. `start` waits for it, and does this where it was not done before."""
        if self._process is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._died: asyncio.Future[str] = self._loop.create_future()
        self._exited = asyncio.Event()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        await self._spawn()

    async def start(self) -> Ready:
        await self.spawn()
        awaited: list[asyncio.Future[Any]] = [self._ready, self._died]
        await asyncio.wait(awaited, timeout=self._start_timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._ready.done():
            return self._ready.result()
        reason = (
            self._died.result() if self._died.done() else f"the engine is not ready after {self._start_timeout:g} s"
        )
        await self.close()
        raise EngineStartError(reason)

    async def close(self) -> None:
        if self._process is None or self._pipe is None:
            return
        self._closing = True
        self._send(Shutdown())
        if not self._ready.done():  # it loads, and listens to nothing
            self._process.terminate()
        for end in (self._process.terminate, self._process.kill):
            if await self._wait_exit():
                break
            end()
        await self._wait_exit()
        self._pipe.close()

    async def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        stream = socket.socket(fileno=os.dup(ours.fileno()))
        stream.setblocking(False)
        ours.close()
        process = context.Process(target=self._target, args=(theirs, self._config), name="headrace-engine", daemon=True)
        process.start()
        theirs.close()
        self._process = process
        self._loop.add_reader(process.sentinel, self._on_exit)
        pipe = self._pipe = MessagePipe(self._on_message, self._on_end)
        await self._loop.create_unix_connection(lambda: pipe, sock=stream)

    async def _wait_exit(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), self._close_timeout)
        return self._exited.is_set()

    def _send(self, message: ToEngine) -> None:
        self._outgoing.append(message)
        if len(self._outgoing) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if self._pipe is not None:
            self._pipe.send(to_engine_encoder.encode(messages))

    def _on_message(self, body: bytes) -> None:
        match from_engine_decoder.decode(body):
            case StepOutput() as step:
                self._handler(step)
            case Ready() as ready:
                self._ready.set_result(ready)
            case EngineFailed(reason):
                self._end(reason)

    def _on_end(self) -> None:
        # The exit code says more than the closed pipe, and follows it at once.
        self._loop.call_later(1.0, self._end, "the engine closed its connection")

    def _on_exit(self) -> None:
        assert self._process is not None
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._exited.set()
        self._end(f"the engine process ended with exit code {self._process.exitcode}")

    def _end(self, reason: str) -> None:
        if not self._closing and not self._died.done():
            self._died.set_result(reason)
