"""`headrace dead` on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from broker.amqp import AmqpBroker
from broker.base import Message
from broker.dead_letters import dead_letter, read_letter
from cli.dead import replayed
from schemas.messages import Job, decode, encode
from schemas.topology import DEAD, DEAD_KEY, RESULTS, request_queue, topology
from tests.broker.inbox import Inbox
from tests.cli.headrace import run

SOURCE = request_queue("m", "interactive").name


def job(name: str) -> Job:
    return Job(id=name, model="m", prompt="x", stream=True, reply_to="gone", deadline=time.time() - 60)


def letter(name: str, source: str = SOURCE) -> Message:
    message = Message(encode(job(name)), message_id=name)
    return dead_letter(message, reason=f"gave up on {name}", attempts=5, source=source)


async def with_broker(url: str, *letters: Message, take: str = "") -> list[Message]:
    """Bury letters; take what there is in a queue."""
    broker = AmqpBroker(url, name="test")
    await broker.connect()
    try:
        await broker.declare(topology(("m",)))
        for message in letters:
            await broker.publish(DEAD, DEAD_KEY, message)
        if not take:
            return []
        inbox = Inbox()
        await broker.consume(take, inbox, prefetch=100)
        deliveries = await inbox.take(1)
        for delivery in deliveries:
            await delivery.ack()
        return [delivery.message for delivery in deliveries]
    finally:
        await broker.close()


@pytest.fixture
def url(amqp_vhost_url: str) -> str:
    unknown = Message(b"no job", headers={"reason": "who knows"})
    asyncio.run(with_broker(amqp_vhost_url, letter("a"), letter("b"), letter("c", RESULTS), unknown))
    return amqp_vhost_url


def listed(url: str) -> list[dict[str, object]]:
    done = run("dead", "list", "--json-lines", "--amqp-url", url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_list_show_replay_drop(url: str) -> None:
    plain = run("dead", "list", "--amqp-url", url)
    assert "attempts 5  headrace.requests.m.interactive  gave up on a" in plain.stdout
    assert plain.stderr.splitlines()[-1] == "4 dead letters"
    letters = listed(url)
    assert [found["id"] for found in letters[:3]] == ["a", "b", "c"]
    assert (letters[0]["reason"], letters[0]["attempts"]) == ("gave up on a", 5)

    shown = json.loads(run("dead", "show", "b", "--amqp-url", url).stdout)
    assert (shown["id"], shown["body"]["prompt"]) == ("b", "x")

    again = run("dead", "replay", "a", "--amqp-url", url)
    assert again.returncode == 0, again.stderr
    (sent,) = asyncio.run(with_broker(url, take=SOURCE))
    assert sent.message_id is not None
    assert sent.message_id.startswith("a-r")
    assert sent.headers == {}

    unknown = str(letters[3]["id"])
    missing = run("dead", "replay", unknown, "nobody", "--amqp-url", url)
    assert missing.returncode == 1
    assert "nobody has noted where it came from" in missing.stderr
    assert "no dead letter nobody" in missing.stderr

    assert run("dead", "drop", unknown, "b", "--amqp-url", url).returncode == 0
    assert [found["id"] for found in listed(url)] == ["c"]
    assert run("dead", "drop", "--all-letters", "--amqp-url", url).returncode == 0
    assert listed(url) == []


def test_a_job_that_has_a_result_is_sent_again_under_a_new_id() -> None:
    sent = replayed(read_letter(letter("j")))
    again = decode(Job, sent.body)
    assert again.id == sent.message_id
    assert again.id != "j"
    assert (again.stream, again.reply_to, again.store_output, again.deadline) == (False, None, True, None)


def test_one_that_the_broker_buried_keeps_its_id_and_its_reader() -> None:
    headers: dict[str, str | int | float] = {"x-first-death-reason": "delivery_limit", "x-first-death-queue": SOURCE}
    sent = replayed(read_letter(Message(encode(job("j")), message_id="j", reply_to="reader", headers=headers)))
    again = decode(Job, sent.body)
    assert (sent.message_id, sent.reply_to, again.id, again.reply_to, again.deadline) == (
        "j",
        "reader",
        "j",
        "gone",
        None,
    )
    assert sent.headers == {}


def test_what_is_no_job_is_sent_as_it_was() -> None:
    sent = replayed(read_letter(dead_letter(Message(b"odd", headers={"h": 1}), reason="?", attempts=1, source=RESULTS)))
    assert (sent.body, sent.headers) == (b"odd", {"h": 1})


@pytest.mark.parametrize("action", ["show", "replay", "drop"])
def test_letters_are_named_or_all(action: str) -> None:
    for arguments in ([], ["x", "--all-letters"]):
        done = run("dead", action, *arguments, "--amqp-url", "amqp://guest:guest@127.0.0.1:1/")
        assert done.returncode == 2
        assert "--all-letters" in done.stderr
