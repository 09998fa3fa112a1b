"""Bounds calls of the client library in time and raises its errors as BrokerErrors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from broker.base import BrokerError, BrokerUnavailable, PublishRejected, Unroutable

logger = logging.getLogger(__name__)

REFUSALS = (ChannelNotFoundEntity, ChannelPreconditionFailed, ChannelAccessRefused, ChannelLockedResource)
"""The broker is there and says no; asking again will not help."""


@asynccontextmanager
async def bounded(what: str, timeout: float) -> AsyncIterator[None]:
    """Run library calls within `timeout` seconds; raises Unroutable, PublishRejected, BrokerUnavailable or BrokerError.

    Cancellation is kept apart from failure, in both directions: the library rejects what is pending on a dying channel
    with CancelledError, though nobody cancelled the caller; and a caller cancelled at that moment gets the channel's
    error in place of its CancelledError.
    """
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    failure: BaseException | None = None
    try:
        async with asyncio.timeout(timeout):
            yield
    except (Exception, asyncio.CancelledError) as error:
        failure = error
    if task.cancelling() > cancellations:
        raise asyncio.CancelledError from failure
    if failure is not None:
        raised = translated(failure, what, timeout)
        raise raised from (failure if raised is not failure else failure.__cause__)


def translated(error: BaseException, what: str, timeout: float) -> BaseException:
    """The library's error as a BrokerError; other errors as they are."""
    match error:
        case BrokerError():
            return error
        case asyncio.CancelledError():
            return BrokerUnavailable(f"{what}: the connection to RabbitMQ was lost")
        case PublishError():
            return Unroutable(f"{what}: {' '.join(map(str, error.args))}")
        case DeliveryError():
            return PublishRejected(f"{what}: the queue is full")
        case TimeoutError():
            return BrokerUnavailable(f"{what}: no answer from RabbitMQ within {timeout:g} s")
    if isinstance(error, REFUSALS):
        return BrokerError(f"{what}: {error}")
    if isinstance(error, AMQPError | ChannelInvalidStateError | OSError | RuntimeError):
        return BrokerUnavailable(f"{what}: {error or type(error).__name__}")
    return error


async def finish(work: Awaitable[object], timeout: float) -> bool:
    """Wait at most `timeout` seconds for a library call that may wait on after its cancellation; True if it ended."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_note_failure)
    try:
        await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    return task.done()


def _note_failure(task: asyncio.Future[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("closing failed: %r", error)


async def stop_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; again, should a library call swallow the cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
