"""Bounds calls of the client library in time and raises its errors as BrokerErrors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from broker.base import BrokerError, BrokerUnavailable, PublishRejected, Unroutable

REFUSALS = (ChannelNotFoundEntity, ChannelPreconditionFailed, ChannelAccessRefused, ChannelLockedResource)
"""The broker is there and says no; asking again will not help."""


@asynccontextmanager
async def bounded(what: str, timeout: float) -> AsyncIterator[None]:
    """Run library calls within `timeout` seconds; raises Unroutable, PublishRejected, BrokerUnavailable or BrokerError."""
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    try:
        async with asyncio.timeout(timeout):
            yield
    except asyncio.CancelledError as error:
        # The library rejects the calls pending on a dying channel with CancelledError; nobody cancelled this task.
        if task.cancelling() > cancellations:
            raise
        raise BrokerUnavailable(f"{what}: the connection to RabbitMQ was lost") from error
    except PublishError as error:
        raise Unroutable(f"{what}: {' '.join(map(str, error.args))}") from error
    except DeliveryError as error:
        raise PublishRejected(f"{what}: the queue is full") from error
    except REFUSALS as error:
        raise BrokerError(f"{what}: {error}") from error
    except TimeoutError as error:
        raise BrokerUnavailable(f"{what}: no answer from RabbitMQ within {timeout:g} s") from error
    except (AMQPError, ChannelInvalidStateError, OSError, RuntimeError) as error:
        raise BrokerUnavailable(f"{what}: {error or type(error).__name__}") from error
