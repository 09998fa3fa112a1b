"""The real engine over a small random model, in process: steps come when the test says so, or by themselves."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine import tiny
from tests.front.harness import TOKENIZER
from workers.front.engine_client import StepHandler
from workers.grammar import Grammars, tokenizer_json
from workers.protocol import AddRequest, Ready, StepOutput

VOCAB = len(TOKENIZER)
EOS = [2]


@functools.lru_cache(maxsize=1)
def model() -> Any:
    """Random weights, wide enough that no choice is a close one."""
    torch.manual_seed(11)
    made = LlamaForCausalLM(LlamaConfig(**{**tiny.SIZES, "vocab_size": VOCAB})).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.15)
    return made


class TinyEngine:
    """An EngineClient. With `pace`, a step every so many seconds while there is work."""

    def __init__(self, pace: float | None = None) -> None:
        self.added: list[AddRequest] = []
        self._engine = tiny.engine(model())
        self._engine.grammars = Grammars(tokenizer_json(TOKENIZER), VOCAB, EOS)
        self._pace = pace
        self._handler: StepHandler = lambda step: None
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def died(self) -> asyncio.Future[str]:
        return self._died

    async def start(self) -> Ready:
        self._died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self._pace is not None:
            self._running = asyncio.create_task(self._run(self._pace))
        return Ready(256, VOCAB, 128, 4, 8, EOS)

    def set_handler(self, handler: StepHandler) -> None:
        self._handler = handler

    def add(self, request: AddRequest) -> None:
        self.added.append(request)
        self._engine.add(request)
        self._changed.set()

    def abort(self, ids: list[str]) -> None:
        self._engine.abort(ids)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        stats = self._engine.stats()
        return stats.running + stats.waiting

    async def until_added(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.added) < count:
                self._changed.clear()
                await self._changed.wait()

    async def step(self, count: int = 1) -> None:
        for _ in range(count):
            outputs = self._engine.step()
            self._handler(StepOutput(outputs, self._engine.stats()))
            await asyncio.sleep(0)

    async def play(self) -> None:
        """Step until nothing runs."""
        while self._engine.has_work:
            await self.step()

    async def _run(self, pace: float) -> None:
        while True:
            while self._engine.has_work:
                await self.step()
                await asyncio.sleep(pace)
            self._changed.clear()
            await self._changed.wait()
