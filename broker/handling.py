"""How both brokers run the handlers of their consumers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from broker.base import BodyHandler, Delivery, Handler

logger = logging.getLogger(__name__)

BODY_BUFFER = 8192
"""Bodies that a subscription holds for a slow handler; those beyond it are dropped and counted."""
MAX_REQUEUE_DELAY = 5.0


class TaskSet:
    """Running tasks, kept from the garbage collector and cancelled together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self, timeout: float = 5.0) -> None:
        """Cancel all but the calling task and wait for them, at most `timeout` seconds."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)


async def run_handler(handler: Handler, delivery: Delivery) -> None:
    """Run one handler; a delivery whose handler raised goes back to its queue.

    It goes back after a pause that doubles with each redelivery, and keeps its prefetch slot meanwhile, so that a
    handler whose database is gone does not spin. A delivery already settled by the handler is left alone.
    """
    try:
        await handler(delivery)
    except Exception:
        logger.exception("handler failed; message %s goes back to its queue", delivery.message.message_id)
        await asyncio.sleep(min(MAX_REQUEUE_DELAY, 0.05 * 2 ** min(delivery.delivery_count, 10)))
        await delivery.reject(requeue=True)


class BodyPump:
    """Hands bodies to one handler, one at a time and in order, from a bounded buffer."""

    def __init__(self, handler: BodyHandler) -> None:
        self.dropped = 0
        self._handler = handler
        self._bodies: asyncio.Queue[bytes] = asyncio.Queue(BODY_BUFFER)
        self._task: asyncio.Task[None] | None = None
        self._is_handling = False
        self._is_stopped = False

    def start(self, tasks: TaskSet) -> None:
        self._task = tasks.start(self._run())

    def put(self, body: bytes) -> None:
        try:
            self._bodies.put_nowait(body)
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped.bit_count() == 1:  # 1, 2, 4, 8...: one line per doubling, not one per body
                logger.warning("a slow handler has lost %d transient messages so far", self.dropped)

    def stop(self) -> None:
        """End, but let the handler finish with the body in its hand: it may be the one that stops the pump."""
        self._is_stopped = True
        if self._task is not None and not self._is_handling:
            self._task.cancel()

    async def _run(self) -> None:
        while not self._is_stopped:
            body = await self._bodies.get()
            self._is_handling = True
            await self._handle(body)
            self._is_handling = False

    async def _handle(self, body: bytes) -> None:
        try:
            await self._handler(body)
        except Exception:
            logger.exception("handler failed on a transient message of %d bytes", len(body))
