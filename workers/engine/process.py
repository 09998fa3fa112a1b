"""The engine in a process of its own: a busy loop between a pipe and the device. No asyncio, no text."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.engine import Engine, InvalidRequest
from workers.protocol import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    FromEngine,
    LoadGrammars,
    Shutdown,
    StepOutput,
    TokenOutput,
    from_engine_encoder,
    to_engine_decoder,
)


def main(connection: Connection, config: EngineConfig) -> None:
    """Build the engine, say Ready or EngineFailed, and run until told to stop or the front's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when to stop
    from workers.engine.build import build_engine

    try:
        built = build_engine(config)
    except Exception as error:  # whatever it is, the front must say it in one line
        _send(connection, EngineFailed(f"{type(error).__name__}: {error}".splitlines()[0]))
        return
    _send(connection, built.ready)
    try:
        EngineLoop(connection, built.engine).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the front is gone, and with it everyone who waits


class EngineLoop:
    def __init__(self, connection: Connection, engine: Engine | EncoderEngine) -> None:
        self._connection, self._engine = connection, engine
        self._stopped = False
        self._aborted = False

    def run(self) -> None:
        while not self._stopped:
            refused = self._receive()
            outputs = self._engine.step() if self._engine.has_work else []
            if refused or outputs or self._aborted:
                self._aborted = False  # the front learns what an abort has freed, even where no step follows
                _send(self._connection, StepOutput(refused + outputs, self._engine.stats()))

    def _receive(self) -> list[TokenOutput]:
        """Take what the front sent, waiting for it where there is nothing to run. Returns what could not be added."""
        refused: list[TokenOutput] = []
        while not self._stopped and (
            not (self._engine.has_work or refused or self._aborted) or self._connection.poll()
        ):
            for message in to_engine_decoder.decode(self._connection.recv_bytes()):
                match message:
                    case AddRequest():
                        refused += self._add(message)
                    case AbortRequests(ids=ids):
                        self._engine.abort(ids)
                        self._aborted = True
                    case LoadGrammars(tokenizer):
                        self._engine.load_grammars(tokenizer)
                    case Shutdown():
                        self._stopped = True
        return refused

    def _add(self, message: AddRequest) -> list[TokenOutput]:
        try:
            self._engine.add(message)
        except InvalidRequest as error:
            return [TokenOutput(message.id, [], error=str(error))]
        return []


def _send(connection: Connection, message: FromEngine) -> None:
    connection.send_bytes(from_engine_encoder.encode(message))
