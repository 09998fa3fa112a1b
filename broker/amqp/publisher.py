"""Publishing: one channel with confirms, one without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika import DeliveryMode
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from broker.amqp.errors import bounded
from broker.amqp.link import Link, ReopeningChannel
from broker.base import BrokerError, BrokerUnavailable, Message, Unroutable


class Publisher:
    def __init__(self, link: Link) -> None:
        self._confirmed = ReopeningChannel(link, confirms=True)
        self._unconfirmed = ReopeningChannel(link, confirms=False)
        self._in_flight: dict[str, asyncio.Event] = {}

    async def confirmed(self, exchange: str, routing_key: str, message: Message, timeout: float) -> None:
        """Persistent and mandatory; returns once RabbitMQ has it safe."""
        what = f"publishing to {routing_key!r} of exchange {exchange!r}"
        try:
            async with bounded(what, timeout), self._alone(message.message_id):
                channel = await (await self._confirmed.get()).get_underlay_channel()
                await channel.basic_publish(
                    message.body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=_properties(message, DeliveryMode.PERSISTENT),
                    mandatory=True,
                )
        except BrokerError as error:
            raise _judged(error, exchange) from error.__cause__

    async def unconfirmed(self, exchange: str, routing_key: str, message: Message, timeout: float) -> None:
        """Transient; returns once it is written to the socket."""
        async with bounded(f"publishing to {routing_key!r} of exchange {exchange!r}", timeout):
            channel = await (await self._unconfirmed.get()).get_underlay_channel()
            properties = _properties(message, DeliveryMode.NOT_PERSISTENT)
            await channel.basic_publish(message.body, exchange=exchange, routing_key=routing_key, properties=properties)

    @asynccontextmanager
    async def _alone(self, message_id: str | None) -> AsyncIterator[None]:
        """Publish messages of one id one after another: the library finds the publish that RabbitMQ returned as
        unroutable by its message id, and would fail the wrong one of two in flight."""
        if message_id is None:
            yield
            return
        while message_id in self._in_flight:
            await self._in_flight[message_id].wait()
        self._in_flight[message_id] = settled = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            settled.set()


def _properties(message: Message, mode: DeliveryMode) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        delivery_mode=int(mode),
        headers=dict(message.headers),
        message_id=message.message_id,
        reply_to=message.reply_to,
    )


def _judged(error: BrokerError, exchange: str) -> BrokerError:
    """A missing exchange closes the channel, and fails every publish that waits on it for its confirmation."""
    if not isinstance(error.__cause__, ChannelNotFoundEntity):
        return error
    if f"'{exchange}'" in str(error.__cause__):
        return Unroutable(str(error))
    return BrokerUnavailable("another publish closed the channel; this message may or may not have been delivered")
