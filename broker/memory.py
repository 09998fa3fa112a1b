"""The embedded broker: RabbitMQ's semantics in one process, for `headrace serve` and for tests.

A `MemoryHub` holds exchanges and queues; every `MemoryBroker` on it is one client's connection. Messages live as long
as the process: durability is what RabbitMQ is for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from broker.base import (
    PUBLISH_TIMEOUT,
    BodyHandler,
    BrokerUnavailable,
    Handler,
    Message,
    PublishRejected,
    Unroutable,
)
from schemas.topology import DEAD, DEAD_KEY, Queue, Topology

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    message: Message
    deliveries: int = 0


@dataclass(slots=True)
class _Queue:
    """Ready entries and who consumes them, served in turn."""

    declared: Queue
    ready: deque[_Entry] = field(default_factory=deque)
    consumers: deque[MemoryConsumer] = field(default_factory=deque)


class MemoryHub:
    """Exchanges and queues shared by the brokers of one process. Not thread-safe: one event loop."""

    def __init__(self) -> None:
        self.queues: dict[str, _Queue] = {}
        self.bindings: dict[tuple[str, str], list[str]] = {}
        self.fanouts: dict[str, list[MemorySubscription]] = {}
        self.exclusive: dict[str, MemorySubscription] = {}
        self.names = count(1)

    def declare(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            if exchange.kind == "fanout":
                self.fanouts.setdefault(exchange.name, [])
        for queue in topology.queues:
            if queue.name not in self.queues:
                self.queues[queue.name] = _Queue(queue)
                self.bindings.setdefault((queue.exchange, queue.routing_key), []).append(queue.name)

    def route(self, exchange: str, key: str, message: Message, *, confirm: bool) -> None:
        """Put a message where its exchange and key say. Raises Unroutable or PublishRejected for a confirmed one."""
        if exchange in self.fanouts:
            for subscription in self.fanouts[exchange]:
                subscription.put(message.body)
            return
        if exchange == "" and key in self.exclusive:
            self.exclusive[key].put(message.body)
            return
        names = [key] if exchange == "" and key in self.queues else self.bindings.get((exchange, key), [])
        if not names and confirm:
            raise Unroutable(f"no queue takes messages of exchange {exchange!r} with key {key!r}")
        for name in names:
            self._enqueue(self.queues[name], message, confirm)

    def _enqueue(self, queue: _Queue, message: Message, confirm: bool) -> None:
        limit = queue.declared.max_length
        if limit is not None and len(queue.ready) >= limit:
            if confirm:
                raise PublishRejected(f"queue {queue.declared.name} is full ({limit} messages)")
            return
        queue.ready.append(_Entry(message))
        self.dispatch(queue)

    def dispatch(self, queue: _Queue) -> None:
        """Hand ready entries to consumers with room, in turn."""
        while queue.ready:
            consumer = next((c for c in queue.consumers if c.has_room), None)
            if consumer is None:
                return
            while queue.consumers[0] is not consumer:
                queue.consumers.rotate(-1)
            queue.consumers.rotate(-1)
            consumer.deliver(queue.ready.popleft())

    def give_back(self, queue: _Queue, entry: _Entry) -> None:
        """Requeue at the head with one more delivery counted, or dead-letter past the queue's limit."""
        entry.deliveries += 1
        limit = queue.declared.delivery_limit
        if limit is not None and entry.deliveries > limit:
            self.dead_letter(queue, entry, "delivery_limit")
        else:
            queue.ready.appendleft(entry)

    def dead_letter(self, queue: _Queue, entry: _Entry, reason: str) -> None:
        if queue.declared.dead_letter:
            headers = {"x-first-death-reason": reason, "x-first-death-queue": queue.declared.name}
            message = replace(entry.message, headers={**headers, **entry.message.headers})
            self.route(DEAD, DEAD_KEY, message, confirm=False)


class MemoryDelivery:
    """One entry in one consumer's hands."""

    def __init__(self, consumer: MemoryConsumer, entry: _Entry) -> None:
        self._consumer, self._entry = consumer, entry
        self.delivery_count = entry.deliveries

    @property
    def message(self) -> Message:
        return self._entry.message

    async def ack(self) -> None:
        self._consumer.settle(self._entry)

    async def reject(self, *, requeue: bool) -> None:
        if not self._consumer.settle(self._entry):
            return
        hub, queue = self._consumer.hub, self._consumer.state
        if requeue:
            hub.give_back(queue, self._entry)
        else:
            hub.dead_letter(queue, self._entry, "rejected")
        hub.dispatch(queue)


class MemoryConsumer:
    """Consumes a durable queue: at most `prefetch` unsettled entries, a task for each."""

    def __init__(self, owner: MemoryBroker, state: _Queue, handler: Handler, prefetch: int) -> None:
        self.hub, self.state = owner.hub, state
        self._owner, self._handler, self._prefetch = owner, handler, prefetch
        self._unsettled: dict[int, _Entry] = {}

    @property
    def queue(self) -> str:
        return self.state.declared.name

    @property
    def has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def deliver(self, entry: _Entry) -> None:
        self._unsettled[id(entry)] = entry
        self._owner.spawn(self._handler(MemoryDelivery(self, entry)))

    def settle(self, entry: _Entry) -> bool:
        """Whether the entry was still in this consumer's hands."""
        if self._unsettled.pop(id(entry), None) is None:
            return False
        self.hub.dispatch(self.state)
        return True

    async def cancel(self) -> None:
        if self in self.state.consumers:
            self.state.consumers.remove(self)

    def give_back_all(self) -> None:
        """The connection is gone: what was unsettled is ready again, in its old order."""
        entries = list(self._unsettled.values())
        self._unsettled.clear()
        for entry in reversed(entries):
            self.hub.give_back(self.state, entry)
        self.hub.dispatch(self.state)


class MemorySubscription:
    """An exclusive queue: bodies one at a time, in order."""

    def __init__(self, owner: MemoryBroker, handler: BodyHandler, exchange: str | None) -> None:
        self._owner, self._handler, self._exchange = owner, handler, exchange
        self.queue = f"headrace.exclusive.{next(owner.hub.names)}"
        self._bodies: asyncio.Queue[bytes] = asyncio.Queue()
        owner.hub.exclusive[self.queue] = self
        if exchange is not None:
            owner.hub.fanouts.setdefault(exchange, []).append(self)
        self._task = owner.spawn(self._pump())

    def put(self, body: bytes) -> None:
        self._bodies.put_nowait(body)

    async def _pump(self) -> None:
        while True:
            body = await self._bodies.get()
            try:
                await self._handler(body)
            except Exception:
                log.exception("a subscriber of %s failed on a message", self._exchange or self.queue)

    async def cancel(self) -> None:
        self._owner.hub.exclusive.pop(self.queue, None)
        if self._exchange is not None and self in self._owner.hub.fanouts[self._exchange]:
            self._owner.hub.fanouts[self._exchange].remove(self)
        self._task.cancel()


class MemoryBroker:
    """One client's connection to a hub."""

    def __init__(self, hub: MemoryHub) -> None:
        self.hub = hub
        self._open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._consumers: list[MemoryConsumer] = []
        self._subscriptions: list[MemorySubscription] = []

    async def connect(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False
        for subscription in self._subscriptions:
            await subscription.cancel()
        for consumer in self._consumers:
            await consumer.cancel()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for consumer in self._consumers:
            consumer.give_back_all()
        self._consumers.clear()
        self._subscriptions.clear()

    async def declare(self, topology: Topology) -> None:
        self._check_open()
        self.hub.declare(topology)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        confirm: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        self._check_open()
        self.hub.route(exchange, routing_key, message, confirm=confirm)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> MemoryConsumer:
        self._check_open()
        state = self._queue(queue)
        consumer = MemoryConsumer(self, state, handler, prefetch)
        self._consumers.append(consumer)
        state.consumers.append(consumer)
        self.hub.dispatch(state)
        return consumer

    async def subscribe(self, handler: BodyHandler, *, exchange: str | None = None) -> MemorySubscription:
        self._check_open()
        subscription = MemorySubscription(self, handler, exchange)
        self._subscriptions.append(subscription)
        return subscription

    async def queue_depth(self, queue: str) -> int:
        self._check_open()
        return len(self._queue(queue).ready)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a handler in a task that `close` ends; its failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a message handler failed", exc_info=error)

    def _queue(self, name: str) -> _Queue:
        if name not in self.hub.queues:
            raise Unroutable(f"queue {name!r} is not declared")
        return self.hub.queues[name]

    def _check_open(self) -> None:
        if not self._open:
            raise BrokerUnavailable("the embedded broker's connection is closed")
