"""What a test's engine process runs in place of an engine."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from workers.engine.config import EngineConfig
from workers.protocol import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    EngineStats,
    FromEngine,
    Ready,
    Shutdown,
    StepOutput,
    TokenOutput,
    from_engine_encoder,
    to_engine_decoder,
)

STATS = EngineStats(0, 0, 0, 0, 0, 0, 0)


def send(connection: Connection, message: FromEngine) -> None:
    connection.send_bytes(from_engine_encoder.encode(message))


def echo(connection: Connection, config: EngineConfig) -> None:
    """Answers each batch of messages with one step: an added request's prompt comes back, an aborted one as `aborted`.
    Token 13 ends the process, token 14 fails it, token 15 makes it deaf."""
    send(connection, Ready(100, 50, 10, 16, config.max_running, [0]))
    while True:
        outputs: list[TokenOutput] = []
        for message in to_engine_decoder.decode(connection.recv_bytes()):
            match message:
                case AddRequest(id=name, prompt_token_ids=tokens):
                    misbehave(connection, tokens)
                    outputs.append(TokenOutput(name, tokens))
                case AbortRequests(ids=ids):
                    outputs += [TokenOutput(name, [], error="aborted") for name in ids]
                case Shutdown():
                    return
        send(connection, StepOutput(outputs, STATS))


def misbehave(connection: Connection, tokens: list[int]) -> None:
    if tokens == [13]:
        os._exit(7)
    if tokens == [14]:
        send(connection, EngineFailed("out of memory"))
    if tokens == [15]:
        while True:
            connection.recv_bytes()


def fail(connection: Connection, config: EngineConfig) -> None:
    send(connection, EngineFailed(f"no model {config.model!r}"))


def exit_at_once(connection: Connection, config: EngineConfig) -> None:
    os._exit(3)


def hang(connection: Connection, config: EngineConfig) -> None:
    connection.recv_bytes()
    connection.recv_bytes()
