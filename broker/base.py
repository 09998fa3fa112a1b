"""The broker's interface. Both implementations pass the same test bodies (tests/broker)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.topology import Topology

PUBLISH_TIMEOUT = 5.0


class BrokerError(Exception):
    """The broker could not do what was asked."""


class Unroutable(BrokerError):
    """No queue takes this message: the model has no queue, or the topology was not declared."""


class PublishRejected(BrokerError):
    """The queue is full (x-overflow=reject-publish)."""


class BrokerUnavailable(BrokerError):
    """No connection, or no confirmation within the time limit. The message may yet be delivered: dedupe by job id."""


class NotSent(BrokerUnavailable):
    """The broker takes no messages at the moment, and none was sent: it will not be delivered."""


@dataclass(frozen=True, slots=True)
class Message:
    """A body with the few properties that travel beside it."""

    body: bytes
    message_id: str | None = None
    reply_to: str | None = None
    headers: dict[str, str | int | float] = field(default_factory=dict)


class Delivery(Protocol):
    """One message handed to one consumer, unacknowledged until `ack` or `reject`.

    `delivery_count` is 0 the first time and grows with each redelivery of the same message.
    """

    @property
    def message(self) -> Message: ...
    @property
    def delivery_count(self) -> int: ...
    async def ack(self) -> None:
        """Remove it from the queue. On a lost connection this does nothing: the broker redelivers."""
        ...

    async def reject(self, *, requeue: bool) -> None:
        """Give it back: to the queue again, or to the dead-letter exchange where the queue has one."""
        ...


Handler = Callable[[Delivery], Coroutine[Any, Any, None]]
BodyHandler = Callable[[bytes], Coroutine[Any, Any, None]]


class Subscription(Protocol):
    """A running consumer."""

    @property
    def queue(self) -> str:
        """The queue's name as it is now: an exclusive queue gets a new name after a reconnection."""
        ...

    async def cancel(self) -> None:
        """Take nothing new; what was delivered stays with its handler until acknowledged or the broker is closed."""
        ...


class Broker(Protocol):
    """One client's connection. Reconnects by itself; every call raises BrokerUnavailable in the meantime."""

    async def connect(self) -> None:
        """Raises BrokerUnavailable with the address and the cause."""
        ...

    async def close(self) -> None:
        """Close; unacknowledged deliveries go back to their queues."""
        ...

    async def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings; idempotent."""
        ...

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        confirm: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        """Publish. With `confirm` the message is durable and routed when this returns, else Unroutable, PublishRejected
        or BrokerUnavailable is raised; without, it is transient and lost silently where nothing takes it."""
        ...

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        """Consume a durable queue with manual acknowledgement, at most `prefetch` unacknowledged at a time. Handlers
        run concurrently, each in a task of its own."""
        ...

    async def subscribe(self, handler: BodyHandler, *, exchange: str | None = None, key: str = "") -> Subscription:
        """Consume an exclusive, transient, uniquely named queue without acknowledgement; bodies come one at a time and
        in order. With `exchange` the queue is bound to it by `key` (which a fanout ignores); without, it is addressed
        by its name through the default exchange ""."""
        ...

    async def queue_depth(self, queue: str) -> int:
        """Messages ready in a durable queue, not counting those delivered and unacknowledged."""
        ...
