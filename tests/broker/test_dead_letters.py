"""Dead letters: what they tell, and that looking at them changes nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

import broker.dead_letters as broker_module
from broker.base import Broker, Message
from broker.dead_letters import dead_letter, held_letters, origin, read_letter, revived
from schemas.messages import Job, encode
from schemas.topology import DEAD, DEAD_KEY, REQUESTS, RESULTS, RESULTS_KEY, Queue, request_queue
from tests.broker.conftest import NewClient
from tests.broker.inbox import Inbox, depth_becomes, publish

SOURCE = request_queue("m", "interactive").name


async def bury(broker: Broker, *names: str) -> None:
    for name in names:
        letter = dead_letter(Message(b"{}", message_id=name), reason=f"why {name}", attempts=3, source=SOURCE)
        await broker.publish(DEAD, DEAD_KEY, letter)
    await depth_becomes(broker, DEAD, len(names))


async def names(broker: Broker, limit: int = 100) -> list[str]:
    async with held_letters(broker, limit) as held:
        return [one.letter.id for one in held]


def test_a_letter_tells_of_its_death() -> None:
    message = Message(b"x", message_id="j", headers={"trace": "t"})
    letter = read_letter(dead_letter(message, reason="r" * 2000, attempts=5, source=SOURCE))
    assert (letter.id, letter.reason, letter.attempts, letter.source) == ("j", "r" * 1000, 5, SOURCE)
    assert letter.died == pytest.approx(time.time(), abs=5)
    assert letter.has_result
    assert origin(letter) == (REQUESTS, "m.interactive")
    assert revived(letter.message) == message


@pytest.mark.parametrize(
    ("body", "name"),
    [(encode(Job(id="in-body", model="m", prompt="x")), "in-body"), (b'{"job": "result-of"}', "result-of")],
    ids=["job", "result"],  # the job's bytes hold the time
)
def test_a_letter_without_a_message_id_is_named_by_its_job(body: bytes, name: str) -> None:
    assert read_letter(Message(body)).id == name


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"id": 3}', b""])
def test_any_other_letter_has_a_name_too(body: bytes) -> None:
    letter = read_letter(Message(body))
    assert len(letter.id) == 12
    assert (letter.reason, letter.attempts, letter.source) == ("unknown", None, "")
    assert origin(letter) is None


def test_a_result_goes_back_to_the_results() -> None:
    letter = read_letter(dead_letter(Message(b"{}"), reason="malformed", attempts=1, source=RESULTS))
    assert origin(letter) == (RESULTS, RESULTS_KEY)
    assert not letter.has_result


async def test_what_the_broker_buries_tells_its_reason(broker: Broker, queue: Queue) -> None:
    inbox = Inbox()
    await broker.consume(queue.name, inbox, prefetch=1)
    await publish(broker, queue, b"poison", b"refused")
    for _ in range(3):  # the queue's limit is two redeliveries
        await (await inbox.next()).reject(requeue=True)
    await (await inbox.next()).reject(requeue=False)
    await depth_becomes(broker, DEAD, 2)
    async with held_letters(broker, 10) as held:
        letters = {one.letter.message.body: one.letter for one in held}
    assert letters[b"poison"].reason == "delivery_limit"
    assert letters[b"poison"].attempts is not None
    assert letters[b"refused"].reason == "rejected"
    assert {letter.source for letter in letters.values()} == {queue.name}
    assert not any(letter.has_result for letter in letters.values())


async def test_looking_changes_neither_letters_nor_their_order(broker: Broker) -> None:
    await bury(broker, *"abcde")
    for _ in range(3):
        assert await names(broker) == list("abcde")
        await depth_becomes(broker, DEAD, 5)


async def test_removing_one_leaves_the_others_in_order(broker: Broker) -> None:
    await bury(broker, *"abcde")
    async with held_letters(broker, 100) as held:
        await held[1].remove()
        await held[3].remove()
    await depth_becomes(broker, DEAD, 3)
    assert await names(broker) == list("ace")


async def test_no_more_than_wanted_is_held(broker: Broker) -> None:
    await bury(broker, *"abc")
    async with held_letters(broker, 2) as held:
        assert [one.letter.id for one in held] == ["a", "b"]
        assert await broker.queue_depth(DEAD) == 1
    await depth_becomes(broker, DEAD, 3)
    assert sorted(await names(broker)) == list("abc")


async def test_an_empty_queue_is_no_wait(broker: Broker) -> None:
    async with asyncio.timeout(1), held_letters(broker, 10) as held:
        assert held == []


async def test_who_dies_while_looking_loses_nothing(broker: Broker, new_client: NewClient) -> None:
    await bury(broker, *"abc")
    other = await new_client()
    async with held_letters(other, 10) as held:
        assert len(held) == 3
        await other.close()
    await depth_becomes(broker, DEAD, 3)
    assert await names(broker) == list("abc")


async def test_letters_that_another_holds_are_not_waited_for_long(
    broker: Broker, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "IDLE_SECONDS", 0.1)
    await bury(broker, "a", "b")

    async def told(_: str) -> int:
        return 2  # as it was before the other took one

    other = await new_client()
    async with held_letters(other, 1):
        monkeypatch.setattr(broker, "queue_depth", told)
        assert await names(broker) == ["b"]
