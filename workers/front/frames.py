"""One Frame per reader and engine step, in order, without confirmation.

While a frame is under way, what comes after it is collected into the next: a slow broker makes frames larger, not more.
What is collected is bounded by the output of the running jobs. A frame that the broker does not take is tried again for a
while: should it arrive twice, the reader knows its offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.base import Broker, BrokerError, Message
from schemas.messages import Delta, Frame, Result, ResumeQuery, TextAnswer, encode
from schemas.topology import reply_address

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for which a frame is tried again. A connection comes back within, or its deliveries go to another worker."""
FIRST_DELAY = 0.05
MAX_DELAY = 1.0
MAX_VECTOR_BYTES = 4 << 20
"""Of embeddings in one frame: RabbitMQ 4 refuses messages of more than 16 MB."""


@dataclass(slots=True)
class _Pending:
    """What the next frame of one reader holds. `sent` waiters learn what became of it."""

    deltas: list[Delta] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    queries: list[ResumeQuery] = field(default_factory=list)
    answers: list[TextAnswer] = field(default_factory=list)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self, error: BrokerError | None) -> None:
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class FrameSender:
    """Collects deltas, results and queries by reader (a job's `reply_to`) and publishes them as frames."""

    def __init__(self, broker: Broker, worker_id: str, *, patience: float = PATIENCE) -> None:
        self._broker = broker
        self._worker_id = worker_id
        self._pending: dict[str, _Pending] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._patience = patience
        self.lost_frames = 0

    def post(self, reader: str, delta: Delta) -> None:
        """Add to the reader's next frame; `flush` sends it."""
        self._of(reader).deltas.append(delta)

    def flush(self) -> None:
        """Send what was posted."""
        for reader in self._pending:
            if reader not in self._senders:
                self._senders[reader] = asyncio.create_task(self._send_all(reader))

    def post_result(self, reader: str, result: Result) -> None:
        """Send a Result once more, behind what was posted; nobody waits for it."""
        self._of(reader).results.append(result)
        self.flush()

    def post_answer(self, reader: str, answer: TextAnswer) -> None:
        """Send an answer, soon; should it be lost, it is asked for again."""
        self._of(reader).answers.append(answer)
        self.flush()

    async def send_query(self, reader: str, query: ResumeQuery) -> None:
        """Raises BrokerError when the frame could not be sent."""
        self._of(reader).queries.append(query)
        await self._sent(reader)

    async def send_result(self, reader: str, result: Result) -> None:
        """Send a Result, after everything posted before. Raises BrokerError when the frame could not be sent."""
        self._of(reader).results.append(result)
        await self._sent(reader)

    async def close(self) -> None:
        """Wait for the frames under way; none is tried again."""
        self._patience = 0.0
        if self._senders:
            await asyncio.wait(list(self._senders.values()))

    def _of(self, reader: str) -> _Pending:
        pending = self._pending.get(reader)
        if pending is None:
            pending = self._pending[reader] = _Pending()
        return pending

    async def _sent(self, reader: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._of(reader).waiters.append(waiter)
        self.flush()
        await waiter

    async def _send_all(self, reader: str) -> None:
        try:
            while (pending := self._pending.pop(reader, None)) is not None:
                await self._send(reader, pending)
        finally:
            del self._senders[reader]

    async def _send(self, reader: str, pending: _Pending) -> None:
        try:
            for frame in self._frames(pending):
                await self._publish(reader, Message(encode(frame)))
        except BrokerError as error:
            # The reader sees the gap by the next offset and says what it has, or the job is delivered again.
            self.lost_frames += 1
            logger.warning("a frame for %s was lost: %s", reader, error)
            pending.settle(error)
        else:
            pending.settle(None)

    def _frames(self, pending: _Pending) -> Iterator[Frame]:
        """One, unless Results with vectors would make it too large."""
        first, *more = _groups(pending.results)
        yield Frame(
            worker=self._worker_id,
            deltas=pending.deltas,
            results=first,
            queries=pending.queries,
            answers=pending.answers,
        )
        for results in more:
            yield Frame(worker=self._worker_id, results=results)

    async def _publish(self, reader: str, message: Message) -> None:
        started, delay = time.monotonic(), FIRST_DELAY
        exchange, key = reply_address(reader)
        while True:
            try:
                await self._broker.publish(exchange, key, message, confirm=False)
                return
            except BrokerError:
                if time.monotonic() - started + delay > self._patience:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_DELAY)


def _groups(results: list[Result]) -> list[list[Result]]:
    """At least one group; none with more than MAX_VECTOR_BYTES of vectors, but for a single Result that has them."""
    groups: list[list[Result]] = [[]]
    room = MAX_VECTOR_BYTES
    for result in results:
        size = sum(len(choice.embedding or b"") for choice in result.choices)
        if size > room and groups[-1]:
            groups.append([])
            room = MAX_VECTOR_BYTES
        groups[-1].append(result)
        room -= size
    return groups
