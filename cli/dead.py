"""`headrace dead`: look at dead letters, send them again, or throw them away."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

import msgspec

from broker.base import Broker, BrokerError, Message
from broker.dead_letters import Held, Letter, held_letters, origin, revived
from cli.errors import StartError
from cli.lifecycle import say
from cli.services import amqp_broker, connected
from cli.settings import DeadSettings
from schemas.messages import MAX_ID_LENGTH, Job, decode, encode

EXIT_NOT_DONE = 1
SHOWN_REASON = 60


def run(settings: DeadSettings) -> None:
    """Do what is asked; ends with 1 where a named letter is not there or could not be sent. Raises StartError."""
    if settings.action != "list" and bool(settings.ids) == settings.all_letters:
        raise StartError(f"`dead {settings.action}` needs ids as `dead list` shows them, or --all-letters")
    if not asyncio.run(_run(settings)):
        sys.exit(EXIT_NOT_DONE)


async def _run(settings: DeadSettings) -> bool:
    try:
        async with (
            connected(amqp_broker(settings, "headrace-dead")) as broker,
            held_letters(broker, settings.max_letters) as held,
        ):
            return await _act(broker, settings, held)
    except BrokerError as error:
        raise StartError(f"the broker failed: {error}") from error


async def _act(broker: Broker, settings: DeadSettings, held: list[Held]) -> bool:
    if settings.action == "list":
        _list([one.letter for one in held], as_json=settings.json_lines)
        return True
    chosen = held if settings.all_letters else [one for one in held if one.letter.id in settings.ids]
    missing = [] if settings.all_letters else sorted(set(settings.ids) - {one.letter.id for one in chosen})
    for name in missing:
        say(f"no dead letter {name}")
    done = [await _do(broker, settings.action, one) for one in chosen]
    return all(done) and not missing


async def _do(broker: Broker, action: str, one: Held) -> bool:
    """One letter shown, sent again or dropped. False where it cannot be sent; it then stays a dead letter."""
    if action == "show":
        print(json.dumps(_described(one.letter) | {"body": _body(one.letter.message)}, ensure_ascii=False, indent=2))
    elif action == "drop":
        await one.remove()
        say(f"dropped {one.letter.id}")
    else:
        return await _replay(broker, one)
    return True


async def _replay(broker: Broker, one: Held) -> bool:
    """Confirmed where it came from before it leaves the dead letters: a crash in between leaves it in both."""
    address = origin(one.letter)
    if address is None:
        say(f"{one.letter.id} cannot be sent again: nobody has noted where it came from")
        return False
    message = replayed(one.letter)
    try:
        await broker.publish(*address, message)
    except BrokerError as error:
        say(f"{one.letter.id} not sent: {error}")
        return False
    await one.remove()
    say(f"sent {one.letter.id} again to {one.letter.source} as {message.message_id or one.letter.id}")
    return True


def replayed(letter: Letter) -> Message:
    """The message to send again.

    A job that was ended as failed has that Result in the ledger, where the first one stays: it goes out under a new id.
    Whoever waited for it has been told, so its output goes to the ledger; a deadline that has passed is lifted.
    """
    message = revived(letter.message)
    try:
        job = decode(Job, message.body)
    except msgspec.MsgspecError:
        return message
    if job.deadline is not None and job.deadline <= time.time():
        job = msgspec.structs.replace(job, deadline=None)
    if letter.has_result:
        name = f"{job.id[: MAX_ID_LENGTH - 7]}-r{secrets.token_hex(2)}"
        job = msgspec.structs.replace(job, id=name, stream=False, reply_to=None, store_output=True)
        return Message(encode(job), message_id=name, headers=message.headers)
    return Message(encode(job), message.message_id, message.reply_to, message.headers)


def _list(letters: list[Letter], *, as_json: bool) -> None:
    if as_json:
        for letter in letters:
            print(json.dumps(_described(letter), ensure_ascii=False))
        return
    for letter in letters:
        died = "-" if letter.died is None else datetime.fromtimestamp(letter.died).isoformat(" ", "seconds")
        attempts = "-" if letter.attempts is None else letter.attempts
        reason = " ".join(letter.reason.split())[:SHOWN_REASON]
        print(f"{letter.id}  {died}  attempts {attempts}  {letter.source or '-'}  {reason}")
    say(f"{len(letters)} dead letter{'s' * (len(letters) != 1)}")


def _described(letter: Letter) -> dict[str, Any]:
    fields = asdict(letter)
    del fields["message"]
    return fields | {"bytes": len(letter.message.body)}


def _body(message: Message) -> Any:
    """As JSON where it is, else as text."""
    try:
        return json.loads(message.body)
    except ValueError:
        return message.body.decode(errors="replace")
