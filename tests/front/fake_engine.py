"""A scripted engine: the next token is a function of the tokens so far, and steps come when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workers.front.engine_client import StepHandler
from workers.protocol import AddRequest, EngineStats, Ready, StepOutput, TokenLogprobs, TokenOutput

Script = Callable[[Sequence[int], int], int]
"""(prompt, position in the output) -> token id."""


@dataclass(slots=True)
class _Running:
    request: AddRequest
    output: list[int] = field(default_factory=list)


class FakeEngine:
    """Serves one token per request and step. `added` and `aborted` keep what the front said."""

    def __init__(self, script: Script, *, vocab_size: int, eos: int, max_model_len: int = 200) -> None:
        self.added: list[AddRequest] = []
        self.aborted: list[str] = []
        self.running: dict[str, _Running] = {}
        self.fail_next: str | None = None
        self.closed = False
        self._script = script
        self._ready = Ready(max_model_len, vocab_size, 100, 16, 4, [eos])
        self._handler: StepHandler = lambda step: None
        self._changed = asyncio.Event()

    @property
    def died(self) -> asyncio.Future[str]:
        return self._died

    async def start(self) -> Ready:
        self._died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return self._ready

    def set_handler(self, handler: StepHandler) -> None:
        self._handler = handler

    def add(self, request: AddRequest) -> None:
        self.added.append(request)
        self.running[request.id] = _Running(request, list(request.output_token_ids))
        self._changed.set()

    def abort(self, ids: list[str]) -> None:
        self.aborted += ids
        for request_id in ids:
            self.running.pop(request_id, None)

    async def close(self) -> None:
        self.closed = True

    async def until_running(self, count: int) -> None:
        """Wait until `count` requests run."""
        async with asyncio.timeout(60):
            while len(self.running) < count:
                self._changed.clear()
                await self._changed.wait()

    async def step(self, count: int = 1) -> None:
        """`count` steps, with a turn of the event loop after each."""
        for _ in range(count):
            outputs = [self._next(running) for running in list(self.running.values())]
            self._handler(StepOutput(outputs, EngineStats(len(self.running), 0, 1, 100, 0, 0, 0)))
            await asyncio.sleep(0)

    async def play(self) -> None:
        """Step until nothing runs."""
        while self.running:
            await self.step()

    def _next(self, running: _Running) -> TokenOutput:
        request = running.request
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            del self.running[request.id]
            return TokenOutput(request.id, [], error=error)
        token = self._script(request.prompt_token_ids, len(running.output))
        running.output.append(token)
        ends = (*self._ready.eos_token_ids, *request.sampling.stop_token_ids)
        stopped = token in ends and not request.sampling.ignore_eos
        full = len(running.output) >= (request.sampling.max_tokens or 0)
        if stopped or full:
            del self.running[request.id]
        wanted = request.sampling.logprobs
        logprobs = None if wanted is None else [TokenLogprobs(-0.5, [token] * wanted, [-0.5] * wanted)]
        return TokenOutput(
            request.id,
            [token],
            "stop" if stopped else "length" if full else None,
            token if stopped else None,
            cached_tokens=2,
            logprobs=logprobs,
        )
