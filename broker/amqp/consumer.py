"""Consuming: a channel for each consumer, made anew after a reconnection, a consumer timeout or a cancel by the broker."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping

from aio_pika.abc import AbstractChannel
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from broker.amqp.errors import bounded, stop_task
from broker.amqp.link import Link, backoff, close_channel, open_channel
from broker.base import BodyHandler, BrokerError, Handler, Message
from broker.handling import BODY_BUFFER, BodyPump, TaskSet, run_handler

logger = logging.getLogger(__name__)

RPC_TIMEOUT = 10.0
SETTLE_TIMEOUT = 5.0
COUNTERS = ("x-delivery-count", "x-acquired-count")
"""Headers in which quorum queues count earlier deliveries: from 4.0 on the second counts every one of them, and from 4.3
on the first only those that failed."""


class Session:
    """The life of one channel that consumes one queue."""

    def __init__(self, channel: AbstractChannel, underlay: UnderlayChannel, queue: str) -> None:
        self.channel = channel
        self.underlay = underlay
        self.queue = queue
        self.tag = ""
        self.unsettled = 0
        self.gone = asyncio.Event()
        self.drained = asyncio.Event()
        self.draining = False
        underlay.closing.add_done_callback(lambda _: self.gone.set())
        underlay.on_consumer_cancel_callbacks.add(self._on_cancelled_by_broker)

    def _on_cancelled_by_broker(self, _: Basic.Cancel) -> None:
        self.gone.set()

    def settled(self) -> None:
        self.unsettled -= 1
        self._check_drained()

    def drain(self) -> None:
        """`drained` is set once every delivery is settled."""
        self.draining = True
        self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and self.unsettled == 0:
            self.drained.set()


class AmqpDelivery:
    __slots__ = ("_session", "_settled", "_tag", "delivery_count", "message")

    def __init__(self, session: Session, delivered: DeliveredMessage) -> None:
        properties = delivered.header.properties
        headers = properties.headers or {}
        assert isinstance(delivered.delivery, Basic.Deliver)
        self.message = Message(delivered.body, properties.message_id, properties.reply_to, _plain(headers))
        self.delivery_count = delivery_count(headers, bool(delivered.delivery.redelivered))
        self._session = session
        self._tag = delivered.delivery.delivery_tag or 0
        self._settled = False

    async def ack(self) -> None:
        await self._settle("ack", requeue=False)

    async def reject(self, *, requeue: bool) -> None:
        await self._settle("reject", requeue=requeue)

    async def _settle(self, how: str, *, requeue: bool) -> None:
        """Settle once, a second time would close the channel. On a dead channel the broker redelivers."""
        if self._settled:
            return
        self._settled = True
        underlay = self._session.underlay
        try:
            async with bounded(how, SETTLE_TIMEOUT):
                if how == "ack":
                    await underlay.basic_ack(self._tag, wait=False)
                else:  # not a nack: from 4.3 on that one does not count towards the delivery limit
                    await underlay.basic_reject(self._tag, requeue=requeue, wait=False)
        except BrokerError as error:
            logger.info("%s not sent, the message will come again: %s", how, error)
            self._session.gone.set()  # or a prefetch slot would stay taken on a channel that lives after all
        self._session.settled()


def delivery_count(headers: Mapping[str, object], redelivered: bool) -> int:
    """How often the message was delivered before; a classic queue tells only whether it was."""
    counts = [count for name in COUNTERS if isinstance(count := headers.get(name), int)]
    return max([*counts, int(redelivered)])


def _plain(headers: Mapping[str, object]) -> dict[str, str | int | float]:
    return {
        name: value for name, value in headers.items() if name not in COUNTERS and isinstance(value, str | int | float)
    }


class Consumer(ABC):
    """A subscription: keeps one session going until it is cancelled."""

    def __init__(self, link: Link, tasks: TaskSet) -> None:
        self._link = link
        self._tasks = tasks
        self.is_cancelled = False
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def queue(self) -> str:
        assert self._session is not None
        return self._session.queue

    async def start(self) -> None:
        """Raises BrokerError where there is no such queue or exchange."""
        self._session = await self._open()
        self._keeper = asyncio.create_task(self._keep(self._session))

    async def cancel(self) -> None:
        self.is_cancelled = True
        await self.stop()
        session = self._session
        if session is None or session.draining or session.gone.is_set():
            return
        try:
            async with bounded(f"cancelling the consumer of {session.queue}", RPC_TIMEOUT):
                await session.underlay.basic_cancel(session.tag)
        except BrokerError as error:
            logger.warning("%s", error)
            session.gone.set()
        session.drain()
        self._tasks.start(self._end(session))

    async def stop(self) -> None:
        """Let it end with its channel."""
        if self._keeper is not None:
            await stop_task(self._keeper)
            self._keeper = None

    async def _end(self, session: Session) -> None:
        """Close the channel of a cancelled consumer once its deliveries are settled."""
        waits = [asyncio.ensure_future(event.wait()) for event in (session.drained, session.gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await close_channel(session.channel)

    async def _keep(self, session: Session) -> None:
        while True:
            await session.gone.wait()
            await close_channel(session.channel)
            self._session = session = await self._reopen()

    async def _reopen(self) -> Session:
        for pause in backoff():
            await self._link.wait_open()
            try:
                return await self._open()
            except BrokerError as error:
                logger.warning("%s", error)
            await asyncio.sleep(pause)
        raise AssertionError("backoff never ends")

    async def _open(self) -> Session:
        async with bounded("consuming", RPC_TIMEOUT):
            channel = await open_channel(self._link.connection)
            try:
                return await self._consume(channel)
            except BaseException:
                self._tasks.start(close_channel(channel))
                raise

    @abstractmethod
    async def _consume(self, channel: AbstractChannel) -> Session: ...


class DurableConsumer(Consumer):
    def __init__(self, link: Link, tasks: TaskSet, queue: str, handler: Handler, prefetch: int) -> None:
        super().__init__(link, tasks)
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch

    async def _consume(self, channel: AbstractChannel) -> Session:
        session = Session(channel, await channel.get_underlay_channel(), self._queue)

        async def deliver(delivered: DeliveredMessage) -> None:
            # In a task of ours: the library cancels its own when the channel closes.
            session.unsettled += 1
            self._tasks.start(run_handler(self._handler, AmqpDelivery(session, delivered)))

        await channel.set_qos(prefetch_count=self._prefetch)
        session.tag = (await session.underlay.basic_consume(self._queue, deliver)).consumer_tag or ""
        return session


class TransientConsumer(Consumer):
    """An exclusive queue, named by the broker and so never the same twice: a name of ours could still belong to a
    connection that the broker has not yet given up. It is deleted with its consumer."""

    def __init__(self, link: Link, tasks: TaskSet, handler: BodyHandler, exchange: str | None, key: str) -> None:
        super().__init__(link, tasks)
        self._pump = BodyPump(handler)
        self._exchange = exchange
        self._key = key

    async def start(self) -> None:
        await super().start()
        self._pump.start(self._tasks)

    async def stop(self) -> None:
        self._pump.stop()
        await super().stop()

    async def _consume(self, channel: AbstractChannel) -> Session:
        if self._exchange is not None:
            await channel.get_exchange(self._exchange)  # raises before there is a queue to leave behind
        # Bounded at the broker too, for a reader that stands still; the oldest go first.
        arguments: dict[str, str | int] = {"x-queue-type": "classic", "x-max-length": BODY_BUFFER}
        # Auto-delete, or the queue of a channel that died alone would fill up for as long as the connection lives.
        queue = await channel.declare_queue(exclusive=True, auto_delete=True, arguments=dict(arguments))
        if self._exchange is not None:
            await queue.bind(self._exchange, self._key)
        session = Session(channel, await channel.get_underlay_channel(), queue.name)

        async def deliver(delivered: DeliveredMessage) -> None:
            self._pump.put(delivered.body)

        session.tag = (await session.underlay.basic_consume(queue.name, deliver, no_ack=True)).consumer_tag or ""
        return session
