"""The engine for encoders: inputs in, vectors out, a batch a step. Nothing is kept from one step to the next."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from workers.engine.engine import InvalidRequest
from workers.model.encoder import Encoder
from workers.model.pooling import finished
from workers.protocol import AddRequest, EngineStats, TokenOutput


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch under way on the device."""

    requests: list[AddRequest]
    states: Tensor
    ready: torch.cuda.Event | None


class EncoderEngine:
    """Takes waiting inputs by priority and arrival, up to `max_running` of `max_batched_tokens` together. On a GPU the
    next batch is launched before the last one is read."""

    def __init__(self, encoder: Encoder, *, max_running: int, max_batched_tokens: int, max_model_len: int) -> None:
        self.encoder = encoder
        self._max_running, self._max_tokens, self._max_length = max_running, max_batched_tokens, max_model_len
        self._waiting: dict[str, AddRequest] = {}
        self._order: list[tuple[int, int, str]] = []
        self._arrivals = count()
        self._launched: _Launched | None = None
        self._aborted: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._launched is not None

    def add(self, added: AddRequest) -> None:
        """Queue a request. Raises InvalidRequest where it could never run."""
        tokens = added.prompt_token_ids
        if added.embedding is None:
            raise InvalidRequest("this engine makes embeddings only")
        if added.id in self._waiting:
            raise InvalidRequest(f"request id {added.id!r} is already waiting")
        if not 0 < len(tokens) <= self._max_length:
            raise InvalidRequest(f"{len(tokens)} tokens are not within 1..{self._max_length}")
        if min(tokens) < 0 or max(tokens) >= self.encoder.vocab_size:
            raise InvalidRequest(f"token ids must be in 0..{self.encoder.vocab_size - 1}")
        self._waiting[added.id] = added
        heapq.heappush(self._order, (added.priority, next(self._arrivals), added.id))

    def load_grammars(self, tokenizer: str) -> None:
        """There is no text for a grammar to rule."""

    def abort(self, ids: list[str]) -> None:
        """Forget requests; unknown ids are ignored."""
        running = [] if self._launched is None else [request.id for request in self._launched.requests]
        self._aborted.update(set(ids).intersection(running))
        for request_id in ids:
            self._waiting.pop(request_id, None)

    def step(self) -> list[TokenOutput]:
        """Launch a batch; return the vectors of the last one, or where nothing runs beside this process of this one."""
        previous, self._launched = self._launched, self._launch(self._take())
        if self._launched is None or self._launched.ready is not None:
            return self._read(previous)
        previous, self._launched = self._launched, None
        return self._read(previous)

    def stats(self) -> EngineStats:
        running = 0 if self._launched is None else len(self._launched.requests)
        return EngineStats(running, len(self._waiting), 0, 0, 0, 0, 0)

    def _take(self) -> list[AddRequest]:
        taken: list[AddRequest] = []
        room = self._max_tokens
        while self._order and len(taken) < self._max_running:
            request = self._waiting.get(self._order[0][2])
            if request is not None:
                if taken and len(request.prompt_token_ids) > room:
                    break
                room -= len(request.prompt_token_ids)
                taken.append(self._waiting.pop(request.id))
            heapq.heappop(self._order)
        return taken

    def _launch(self, requests: list[AddRequest]) -> _Launched | None:
        if not requests:
            return None
        states = self.encoder([request.prompt_token_ids for request in requests])
        if states.device.type == "cpu":
            return _Launched(requests, states, None)
        host = torch.empty(states.shape, pin_memory=True).copy_(states, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
        return _Launched(requests, host, ready)

    def _read(self, launched: _Launched | None) -> list[TokenOutput]:
        if launched is None:
            return []
        if launched.ready is not None:
            launched.ready.synchronize()
        aborted, self._aborted = self._aborted, set()
        outputs = []
        for request, state in zip(launched.requests, launched.states.numpy(), strict=True):
            if request.id not in aborted:
                assert request.embedding is not None
                vector = finished(state, request.embedding, self.encoder.pooling)
                outputs.append(TokenOutput(request.id, [], "stop", vector=vector))
        return outputs
