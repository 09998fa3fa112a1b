"""A connection that opens itself again, and channels on it that do the same."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.connection import make_url
from aio_pika.exceptions import ChannelClosed

from broker.amqp.errors import bounded, finish, stop_task
from broker.base import BrokerError, BrokerUnavailable

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 3.0
HEARTBEAT = 10
"""Seconds. A peer that stands still is noticed after two or three of them; the library's default is 60."""
MAX_BACKOFF = 5.0

OnReopen = Callable[[Connection], Coroutine[Any, Any, None]]


def backoff() -> Iterator[float]:
    """Pauses in seconds, growing to MAX_BACKOFF, each spread so that clients do not return in step."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(MAX_BACKOFF, pause * 2)


class Link:
    """One connection to RabbitMQ, opened again whenever it is lost.

    `on_reopen` prepares a new connection before anyone else gets it.
    """

    def __init__(self, url: str, name: str, on_reopen: OnReopen | None = None) -> None:
        address = make_url(url)
        self._url = address if "heartbeat" in address.query else address.update_query(heartbeat=HEARTBEAT)
        self._name = name
        self._on_reopen = on_reopen
        self._connection: Connection | None = None
        self._is_open = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it connects to, without the credentials."""
        return str(self._url.with_user(None).with_query(None)) if self._url.absolute else "the URL"

    async def open(self) -> None:
        """Raises BrokerUnavailable with the address and the cause."""
        await self._connect()
        self._is_open.set()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            await stop_task(self._keeper)
            self._keeper = None
        await self._disconnect()

    async def wait_open(self) -> None:
        await self._is_open.wait()

    @property
    def connection(self) -> Connection:
        """Raises BrokerUnavailable while there is none."""
        if self._connection is None or not self._is_open.is_set():
            raise BrokerUnavailable(f"no connection to RabbitMQ at {self.address}")
        return self._connection

    async def _connect(self) -> Connection:
        if self._url.scheme not in ("amqp", "amqps"):
            raise BrokerUnavailable(f"{self.address} is no AMQP address: amqp://user:password@host:port/vhost")
        connection = Connection(self._url, client_properties={"connection_name": self._name})
        try:
            async with bounded(f"cannot connect to RabbitMQ at {self.address}", CONNECT_TIMEOUT):
                await connection.connect()
        except BaseException:
            await connection.close()  # marks the object closed; there is no transport to wait for
            raise
        self._lost.clear()
        connection.close_callbacks.add(self._on_closed)
        self._connection = connection
        return connection

    def _on_closed(self, *_: object) -> None:
        self._is_open.clear()
        self._lost.set()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._is_open.clear()
        if connection is not None:
            connection.close_callbacks.discard(self._on_closed)
            if not await finish(connection.close(), CLOSE_TIMEOUT):
                logger.warning("connection %s did not close within %g s", self._name, CLOSE_TIMEOUT)

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            logger.warning("lost the connection %s to RabbitMQ at %s", self._name, self.address)
            await self._disconnect()
            await self._reconnect()

    async def _reconnect(self) -> None:
        for pause in backoff():
            await asyncio.sleep(pause)
            try:
                await self._prepare(await self._connect())
            except BrokerUnavailable as error:
                logger.warning("%s", error)
                await self._disconnect()
                continue
            if not self._lost.is_set():
                self._is_open.set()
                logger.info("connected again to RabbitMQ at %s", self.address)
            return

    async def _prepare(self, connection: Connection) -> None:
        try:
            if self._on_reopen is not None:
                await self._on_reopen(connection)
        except BrokerUnavailable:
            raise
        except BrokerError as error:  # a refusal: what does not need the topology shall go on
            logger.error("%s", error)


class ReopeningChannel:
    """A channel opened at first use, and again where the connection or the broker has closed it."""

    def __init__(self, link: Link, *, confirms: bool) -> None:
        self._link = link
        self._confirms = confirms
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    async def get(self) -> AbstractChannel:
        """Call it within `bounded`. Raises BrokerUnavailable while there is no connection."""
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await open_channel(self._link.connection, confirms=self._confirms)
        return self._channel


async def open_channel(connection: Connection, *, confirms: bool = False) -> AbstractChannel:
    """Call it within `bounded`. With `confirms`, unroutable messages raise at their publisher."""
    channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
    await channel.initialize()
    return channel


async def close_channel(channel: AbstractChannel) -> None:
    """Close; unacknowledged deliveries go back. Where it cannot in time, the connection's end will do it."""
    if not await finish(channel.close(ChannelClosed(0, "closed by its user")), CLOSE_TIMEOUT):
        logger.warning("channel %s did not close within %g s", channel, CLOSE_TIMEOUT)
