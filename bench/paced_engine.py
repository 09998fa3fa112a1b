"""An engine without a model: each step takes the same time and gives every running request one token. It stands in where
the service around the engine is measured."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.process import EngineLoop
from workers.protocol import AddRequest, EngineStats, Ready, TokenOutput, from_engine_encoder

FIRST_TOKEN, TOKENS = 1000, 20_000
"""Ids go round in a range that every tokenizer fills with ordinary text."""
MAX_MODEL_LEN = 1 << 17
VOCAB_SIZE = 1 << 17


@dataclass(slots=True)
class _Running:
    request: AddRequest
    made: int
    token: int


class PacedEngine:
    """What `EngineLoop` drives, with steps of `step_seconds`; 0 goes as fast as the front takes it. `max_running` requests
    run at once, the others wait in the order in which they came."""

    def __init__(self, step_seconds: float, max_running: int = 1 << 20) -> None:
        self._step_seconds = step_seconds
        self._max_running = max_running
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, _Running] = {}
        self._next = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request: AddRequest) -> None:
        if not self._running:
            self._next = time.perf_counter()
        start = FIRST_TOKEN + hash(request.id) % TOKENS
        self._waiting[request.id] = _Running(request, len(request.output_token_ids), start)
        self._start()

    def load_grammars(self, tokenizer: str) -> None:
        """It follows none."""

    def abort(self, ids: list[str]) -> None:
        for request_id in ids:
            self._running.pop(request_id, None)
            self._waiting.pop(request_id, None)
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            first = next(iter(self._waiting))
            self._running[first] = self._waiting.pop(first)

    def step(self) -> list[TokenOutput]:
        """Wait for the step's end, then one token a request."""
        self._next = max(self._next + self._step_seconds, time.perf_counter())
        time.sleep(max(0.0, self._next - time.perf_counter()))
        outputs = [self._output(running) for running in list(self._running.values())]
        self._start()
        return outputs

    def stats(self) -> EngineStats:
        return EngineStats(len(self._running), len(self._waiting), len(self._running), VOCAB_SIZE, 0, 0, 0)

    def _output(self, running: _Running) -> TokenOutput:
        request = running.request
        running.made += 1
        running.token = FIRST_TOKEN + (running.token + 7) % TOKENS
        if running.made < (request.sampling.max_tokens or MAX_MODEL_LEN):
            return TokenOutput(request.id, [running.token])
        del self._running[request.id]
        return TokenOutput(request.id, [running.token], "length")


def run_paced_engine(step_seconds: float, connection: Connection, config: EngineConfig) -> None:
    """What the engine process runs in place of a model's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = Ready(MAX_MODEL_LEN, VOCAB_SIZE, VOCAB_SIZE, 16, config.max_running, [0])
    connection.send_bytes(from_engine_encoder.encode(ready))
    try:
        EngineLoop(connection, cast(Engine, PacedEngine(step_seconds, config.max_running))).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
