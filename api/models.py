"""Which models are served, by whom and how loaded: kept from the workers' Status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from api.errors import ApiError, model_not_found, unsupported_model
from api.subscriptions import end
from broker.base import Broker, Message, Subscription
from schemas.messages import Control, Status, decode, encode
from schemas.topology import CONTROL, STATUS

log = logging.getLogger(__name__)

MAX_NAMED = 10
"""Models that an error names."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model over all its workers. `max_model_len` is the smallest of theirs: any of them may take a request.
    `embedding_dimensions` is 0 for a model that makes text. `sampling_defaults` are those that all workers have."""

    id: str
    created: int
    max_model_len: int
    workers: int
    running: int
    waiting: int
    queued_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    preemptions: int
    tokens_per_second: float
    embedding_dimensions: int
    sampling_defaults: dict[str, float]


class ModelRegistry:
    """Workers by their last Status; one that has said nothing for `expiry` seconds is gone.

    A worker that vanished without a word has probably crashed and will be back: its model is accepted for `crash_grace`
    seconds more, and the requests wait in the queue. One that said it leaves takes its model along. Within
    `discovery_seconds` of the start an unknown model is waited for, since workers have just been asked to announce
    themselves.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        expiry: float = 10.0,
        crash_grace: float = 600.0,
        discovery_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._expiry = expiry
        self._crash_grace = crash_grace
        self._discovery_seconds = discovery_seconds
        self._clock = clock
        self._workers: dict[str, tuple[Status, float]] = {}
        self._crashed: dict[str, float] = {}
        self._changed = asyncio.Condition()
        self._subscription: Subscription | None = None
        self._discovered_at = 0.0

    async def start(self) -> None:
        """Listen, and ask every worker to announce itself. Raises BrokerError."""
        self._subscription = await self._broker.subscribe(self._on_status, exchange=STATUS)
        self._discovered_at = self._clock() + self._discovery_seconds
        await self._broker.publish(CONTROL, "", Message(encode(Control(kind="announce"))), confirm=False)

    async def close(self) -> None:
        """Stop listening."""
        await end(self._subscription)

    def workers(self) -> list[Status]:
        """The last Status of every live worker, by name."""
        self._expire()
        return sorted((status for status, _ in self._workers.values()), key=lambda status: status.worker)

    def models(self) -> list[ServedModel]:
        """The models with a live worker, by name."""
        by_model: dict[str, list[Status]] = {}
        for status in self.workers():
            by_model.setdefault(status.model, []).append(status)
        return [_aggregate(name, by_model[name]) for name in sorted(by_model)]

    def get(self, model: str) -> ServedModel:
        """A model with a live worker. Raises ApiError 404."""
        for served in self.models():
            if served.id == model:
                return served
        raise model_not_found(model)

    def sampling_defaults(self, model: str) -> dict[str, float]:
        """What counts where a request for `model` does not say; nothing while no worker is there to tell."""
        return next((served.sampling_defaults for served in self.models() if served.id == model), {})

    async def require(self, model: str, *, embeddings: bool | None = None) -> None:
        """Return if requests for `model` may be accepted: for `embeddings`, for text (False), or for either (None).
        Raises ApiError 404 `model_not_found`, 400 `unsupported_model`."""
        await self._discover(model)
        makes = [status.embedding_dimensions > 0 for status in self.workers() if status.model == model]
        if embeddings is not None and makes and embeddings not in makes:
            raise unsupported_model(model, embeddings=embeddings)

    async def _discover(self, model: str) -> None:
        if self._accepts(model):
            return
        try:
            async with asyncio.timeout(max(0.0, self._discovered_at - self._clock())), self._changed:
                await self._changed.wait_for(lambda: self._accepts(model))
        except TimeoutError:
            if not self._accepts(model):  # it may have come as time was up
                raise self._unknown(model) from None

    def _accepts(self, model: str) -> bool:
        self._expire()
        return model in self._crashed or any(status.model == model for status, _ in self._workers.values())

    def _unknown(self, model: str) -> ApiError:
        return model_not_found(model, [served.id for served in self.models()][:MAX_NAMED])

    def _expire(self) -> None:
        now = self._clock()
        for worker, (status, seen) in list(self._workers.items()):
            if now - seen > self._expiry:
                log.warning("worker %s of model %s has said nothing for %.0f s", worker, status.model, self._expiry)
                del self._workers[worker]
                self._crashed[status.model] = seen
        for model, seen in list(self._crashed.items()):
            if now - seen > self._crash_grace:
                del self._crashed[model]

    async def _on_status(self, body: bytes) -> None:
        try:
            status = decode(Status, body)
        except msgspec.MsgspecError as error:
            log.error("malformed status dropped: %s", error)
            return
        if status.leaving:
            self._workers.pop(status.worker, None)
            return
        self._workers[status.worker] = (status, self._clock())
        self._crashed.pop(status.model, None)
        async with self._changed:
            self._changed.notify_all()


def _aggregate(model: str, workers: list[Status]) -> ServedModel:
    return ServedModel(
        id=model,
        created=min(status.created for status in workers),
        max_model_len=min(status.max_model_len for status in workers),
        workers=len(workers),
        running=sum(status.running for status in workers),
        waiting=sum(status.waiting for status in workers),
        queued_tokens=sum(status.queued_tokens for status in workers),
        kv_blocks_used=sum(status.kv_blocks_used for status in workers),
        kv_blocks_total=sum(status.kv_blocks_total for status in workers),
        preemptions=sum(status.preemptions for status in workers),
        tokens_per_second=sum(status.tokens_per_second for status in workers),
        embedding_dimensions=min(status.embedding_dimensions for status in workers),
        sampling_defaults=_in_common([status.sampling_defaults for status in workers]),
    )


def _in_common(given: list[dict[str, float]]) -> dict[str, float]:
    return {name: value for name, value in given[0].items() if all(other.get(name) == value for other in given)}
