"""The embedded broker: RabbitMQ's semantics for clients that share one event loop, without a service.

A `MemoryHub` holds the exchanges and queues; each `MemoryBroker` is one client of it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from broker.base import (
    PUBLISH_TIMEOUT,
    BodyHandler,
    BrokerError,
    BrokerUnavailable,
    Handler,
    Message,
    PublishRejected,
    Subscription,
    Unroutable,
)
from broker.handling import BodyPump, TaskSet, run_handler
from schemas.topology import DEAD, DEAD_KEY, Exchange, Queue, Topology

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Entry:
    """A message in a durable queue and how often it came back."""

    message: Message
    delivery_count: int = 0


class _MemoryDelivery:
    def __init__(self, consumer: _Consumer, entry: _Entry) -> None:
        self.message = entry.message
        self.delivery_count = entry.delivery_count
        self._consumer = consumer
        self._entry = entry

    async def ack(self) -> None:
        if self._consumer.settle(self._entry):
            self._consumer.queue.dispatch()

    async def reject(self, *, requeue: bool) -> None:
        if self._consumer.settle(self._entry):
            self._consumer.queue.give_back([self._entry], requeue=requeue)


class _Consumer:
    """One consumer of one durable queue, with the entries that it has not settled."""

    def __init__(self, queue: _DurableQueue, handler: Handler, prefetch: int, tasks: TaskSet) -> None:
        self.queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._tasks = tasks
        self._unacked: dict[_Entry, None] = {}

    @property
    def unacked(self) -> int:
        return len(self._unacked)

    @property
    def has_room(self) -> bool:
        return self.unacked < self._prefetch

    def deliver(self, entry: _Entry) -> None:
        self._unacked[entry] = None
        self._tasks.start(run_handler(self._handler, _MemoryDelivery(self, entry)))

    def settle(self, entry: _Entry) -> bool:
        """Forget an entry; False where it was settled before or has gone back already."""
        if entry not in self._unacked:
            return False
        del self._unacked[entry]
        return True

    @property
    def is_done(self) -> bool:
        """Cancelled, and all that it was given is settled."""
        return not self._unacked and self not in self.queue.consumers

    def take_unacked(self) -> list[_Entry]:
        entries = list(self._unacked)
        self._unacked.clear()
        return entries


class _DurableQueue:
    """A quorum queue: what came back is delivered before what is new; consumers take turns."""

    def __init__(self, spec: Queue, dead_letter: Callable[[Message], None]) -> None:
        self.spec = spec
        self._dead_letter = dead_letter
        self._new: deque[_Entry] = deque()
        self._returned: deque[_Entry] = deque()
        self.consumers: deque[_Consumer] = deque()

    @property
    def depth(self) -> int:
        return len(self._new) + len(self._returned)

    @property
    def unsettled(self) -> int:
        return self.depth + sum(consumer.unacked for consumer in self.consumers)

    @property
    def is_full(self) -> bool:
        return self.spec.max_length is not None and self.depth >= self.spec.max_length

    def put(self, message: Message) -> None:
        self._new.append(_Entry(message))
        self.dispatch()

    def give_back(self, entries: list[_Entry], *, requeue: bool) -> None:
        """Take unacknowledged entries back, or dead-letter those rejected for good or over the delivery limit."""
        limit = self.spec.delivery_limit
        for entry in entries:
            # A new object: a settled delivery must not settle the next delivery of the same message.
            again = _Entry(entry.message, entry.delivery_count + 1)
            if not requeue:
                self._bury(again, "rejected")
            elif limit is not None and again.delivery_count > limit:
                self._bury(again, "delivery_limit")
            else:
                self._returned.append(again)
        self.dispatch()

    def _bury(self, entry: _Entry, reason: str) -> None:
        if self.spec.dead_letter:
            first_death: dict[str, str | int | float] = {
                "x-first-death-reason": reason,
                "x-first-death-queue": self.spec.name,
                "x-first-death-exchange": self.spec.exchange,
            }
            self._dead_letter(replace(entry.message, headers=first_death | entry.message.headers))

    def dispatch(self) -> None:
        while self.depth and (consumer := self._next_consumer()):
            consumer.deliver((self._returned or self._new).popleft())

    def _next_consumer(self) -> _Consumer | None:
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.has_room:
                return consumer
        return None

    def add_consumer(self, consumer: _Consumer) -> None:
        self.consumers.append(consumer)
        self.dispatch()

    def remove_consumer(self, consumer: _Consumer) -> None:
        if consumer in self.consumers:
            self.consumers.remove(consumer)


class _TransientQueue:
    """An exclusive queue without acknowledgement: a name for a pump."""

    def __init__(self, name: str, pump: BodyPump) -> None:
        self.name = name
        self.pump = pump
        self.is_full = False

    def put(self, message: Message) -> None:
        self.pump.put(message.body)


class MemoryHub:
    """Exchanges, queues and bindings: what a RabbitMQ node holds. Lives in one event loop; nothing outlives it."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, _DurableQueue | _TransientQueue] = {}
        self._bindings: dict[str, dict[str, list[str]]] = {}  # exchange -> routing key -> queue names

    def declare_exchange(self, exchange: Exchange) -> None:
        if self._exchanges.setdefault(exchange.name, exchange) != exchange:
            raise BrokerError(f"exchange {exchange.name} exists with another type")

    def declare_queue(self, spec: Queue) -> None:
        queue = self._queues.get(spec.name)
        if queue is None:
            self._queues[spec.name] = _DurableQueue(spec, self._dead_letter)
        elif not isinstance(queue, _DurableQueue) or queue.spec != spec:
            raise BrokerError(f"queue {spec.name} exists with other arguments")
        self._bind(spec.name, spec.exchange, spec.routing_key)

    def _bind(self, queue: str, exchange: str, routing_key: str) -> None:
        if exchange not in self._exchanges:
            raise BrokerError(f"no exchange {exchange}: declare the topology first")
        bound = self._bindings.setdefault(exchange, {}).setdefault(routing_key, [])
        if queue not in bound:
            bound.append(queue)

    def add_transient(self, queue: _TransientQueue, exchange: str | None, key: str) -> None:
        if exchange is not None:
            self._bind(queue.name, exchange, key)
        self._queues[queue.name] = queue

    def remove_transient(self, queue: _TransientQueue) -> None:
        self._queues.pop(queue.name, None)
        for keys in self._bindings.values():
            for key, bound in list(keys.items()):
                if queue.name in bound:
                    bound.remove(queue.name)
                if not bound:
                    del keys[key]
        queue.pump.stop()

    def has(self, queue: _TransientQueue) -> bool:
        return queue.name in self._queues

    def durable(self, name: str) -> _DurableQueue:
        queue = self._queues.get(name)
        if not isinstance(queue, _DurableQueue):
            raise BrokerError(f"no queue {name}: declare the topology first")
        return queue

    def unsettled(self, name: str) -> int:
        """Messages of a durable queue that are not acknowledged, waiting or delivered to a consumer that goes on."""
        return self.durable(name).unsettled

    def publish(self, exchange: str, routing_key: str, message: Message) -> None:
        """Raises Unroutable, or PublishRejected where any of the queues is full; the others have the message then."""
        targets = list(self._route(exchange, routing_key))
        if not targets:
            raise Unroutable(f"no queue takes {routing_key!r} of exchange {exchange!r}")
        open_targets = [queue for queue in targets if not queue.is_full]
        for queue in open_targets:
            queue.put(message)
        if len(open_targets) < len(targets):
            raise PublishRejected(f"the queue of {routing_key!r} is full")

    def _route(self, exchange: str, routing_key: str) -> Iterator[_DurableQueue | _TransientQueue]:
        if exchange == "":
            names = [routing_key]
        elif exchange in self._exchanges and self._exchanges[exchange].kind == "fanout":
            names = [name for bound in self._bindings.get(exchange, {}).values() for name in bound]
        else:
            names = self._bindings.get(exchange, {}).get(routing_key, [])
        return (self._queues[name] for name in names if name in self._queues)

    def _dead_letter(self, message: Message) -> None:
        try:
            self.publish(DEAD, DEAD_KEY, message)
        except BrokerError as error:
            logger.error("dead letter %s is lost: %s", message.message_id, error)


class _ConsumerSubscription:
    def __init__(self, consumer: _Consumer) -> None:
        self._consumer = consumer

    @property
    def queue(self) -> str:
        return self._consumer.queue.spec.name

    async def cancel(self) -> None:
        self._consumer.queue.remove_consumer(self._consumer)


class _TransientSubscription:
    def __init__(self, hub: MemoryHub, queue: _TransientQueue) -> None:
        self._hub = hub
        self._queue = queue

    @property
    def queue(self) -> str:
        return self._queue.name

    async def cancel(self) -> None:
        self._hub.remove_transient(self._queue)


class MemoryBroker:
    """One client of a `MemoryHub`; closing it gives its unacknowledged deliveries back."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub
        self._open = False
        self._tasks = TaskSet()
        self._consumers: list[_Consumer] = []
        self._transients: list[_TransientQueue] = []

    async def connect(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False
        for queue in self._transients:
            self._hub.remove_transient(queue)
        # Every consumer leaves before anything goes back, or it would come back to this closed client.
        for consumer in self._consumers:
            consumer.queue.remove_consumer(consumer)
        for consumer in self._consumers:
            consumer.queue.give_back(consumer.take_unacked(), requeue=True)
        self._consumers.clear()
        self._transients.clear()
        await self._tasks.cancel()

    def _require_open(self) -> None:
        if not self._open:
            raise BrokerUnavailable("the in-memory broker is not connected")

    async def declare(self, topology: Topology) -> None:
        self._require_open()
        for exchange in topology.exchanges:
            self._hub.declare_exchange(exchange)
        for queue in topology.queues:
            self._hub.declare_queue(queue)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        confirm: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        self._require_open()
        try:
            self._hub.publish(exchange, routing_key, message)
        except BrokerError as error:
            if confirm:
                raise
            logger.debug("unconfirmed message lost: %s", error)
        if confirm:
            await asyncio.sleep(0)  # where a real broker's confirmation is awaited, consumers get their turn

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        self._require_open()
        if prefetch < 1:
            raise ValueError("prefetch must be at least 1")
        consumer = _Consumer(self._hub.durable(queue), handler, prefetch, self._tasks)
        self._consumers = [*(kept for kept in self._consumers if not kept.is_done), consumer]
        consumer.queue.add_consumer(consumer)
        return _ConsumerSubscription(consumer)

    async def subscribe(self, handler: BodyHandler, *, exchange: str | None = None, key: str = "") -> Subscription:
        self._require_open()
        pump = BodyPump(handler)
        queue = _TransientQueue(f"headrace.exclusive.{uuid.uuid4().hex}", pump)
        self._hub.add_transient(queue, exchange, key)
        pump.start(self._tasks)
        self._transients = [*filter(self._hub.has, self._transients), queue]
        return _TransientSubscription(self._hub, queue)

    async def queue_depth(self, queue: str) -> int:
        self._require_open()
        return self._hub.durable(queue).depth
