"""Dead letters: how a message becomes one, and how they are looked at and taken up again.

A letter is the message as it was, with headers that tell of its death. The broker buries a message of itself only where
its own delivery limit is reached; its headers differ, and tell less.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from broker.base import Broker, Delivery, Message
from schemas.topology import BROKER_DELIVERY_LIMIT, DEAD, REQUESTS, RESULTS, RESULTS_KEY

MAX_REASON = 1_000
"""Characters of a reason."""
IDLE_SECONDS = 2.0
"""How long to wait for a letter that should be there: another may be looking at it."""
DEATH_HEADERS = ("reason", "attempts", "source", "died")
BROKER_PREFIXES = ("x-first-death-", "x-last-death-")


def dead_letter(message: Message, *, reason: str, attempts: int, source: str) -> Message:
    """The letter for `message`, which was delivered `attempts` times from the queue `source`."""
    headers: dict[str, str | int | float] = dict(message.headers)
    headers |= {"reason": reason[:MAX_REASON], "attempts": attempts, "source": source, "died": time.time()}
    return replace(message, headers=headers)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `id` is the message's own, else that of the job in it, else a digest of the body. `attempts` and
    `died` (Unix seconds) are None where nobody has noted them; `has_result` says whether its job was ended as failed."""

    id: str
    reason: str
    attempts: int | None
    source: str
    died: float | None
    has_result: bool
    message: Message


def read_letter(message: Message) -> Letter:
    """What a message from the dead-letter queue tells."""
    headers = message.headers
    reason = str(headers.get("reason") or headers.get("x-first-death-reason") or "unknown")
    attempts, died = headers.get("attempts"), headers.get("died")
    if attempts is None and reason == "delivery_limit":
        attempts = BROKER_DELIVERY_LIMIT + 1
    source = str(headers.get("source") or headers.get("x-first-death-queue") or "")
    return Letter(
        id=message.message_id or _id_in(message.body) or hashlib.blake2b(message.body, digest_size=6).hexdigest(),
        reason=reason,
        attempts=None if attempts is None else int(attempts),
        source=source,
        died=None if died is None else float(died),
        has_result="reason" in headers and source.startswith(REQUESTS),
        message=message,
    )


def origin(letter: Letter) -> tuple[str, str] | None:
    """Exchange and routing key by which it came to its queue; None where nobody has noted it."""
    if letter.source == RESULTS:
        return RESULTS, RESULTS_KEY
    key = letter.source.removeprefix(f"{REQUESTS}.")
    return (REQUESTS, key) if key not in ("", letter.source) else None


def revived(message: Message) -> Message:
    """The message without the traces of its death."""
    headers = message.headers.items()
    kept = {
        name: value for name, value in headers if name not in DEATH_HEADERS and not name.startswith(BROKER_PREFIXES)
    }
    return replace(message, headers=kept)


class Held:
    """A letter in the hand of who looks at it; `remove` takes it out of the queue for good."""

    def __init__(self, delivery: Delivery) -> None:
        self.letter = read_letter(delivery.message)
        self.is_removed = False
        self._delivery = delivery

    async def remove(self) -> None:
        self.is_removed = True
        await self._delivery.ack()

    async def give_back(self) -> None:
        if not self.is_removed:
            await self._delivery.reject(requeue=True)


@asynccontextmanager
async def held_letters(broker: Broker, limit: int) -> AsyncIterator[list[Held]]:
    """The first `limit` letters, oldest first, held back from everyone else within the block.

    Those not removed go back in their order when the block is left, and by the broker's own doing when this process
    dies. Raises BrokerError.
    """
    wanted = min(limit, await broker.queue_depth(DEAD))
    held: list[Held] = []
    arrived = asyncio.Event()

    async def take(delivery: Delivery) -> None:
        held.append(Held(delivery))
        arrived.set()

    if wanted == 0:
        yield held
        return
    subscription = await broker.consume(DEAD, take, prefetch=wanted)
    try:
        await _until(held, wanted, arrived)
        await subscription.cancel()
        yield held
    finally:
        for one in held:
            await one.give_back()


async def _until(held: list[Held], wanted: int, arrived: asyncio.Event) -> None:
    """Wait for so many; no longer where none comes for a while."""
    while len(held) < wanted:
        arrived.clear()
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await arrived.wait()
        except TimeoutError:
            return


def _id_in(body: bytes) -> str | None:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    name = fields.get("id") or fields.get("job") if isinstance(fields, dict) else None
    return name if isinstance(name, str) else None
