"""What keeps tokens and counts single is needed: with any one of these predicates taken out, what is promised is broken,
and the test of the promise says so. Each body here is run twice, as the code is and with one predicate gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import insert

from api.shown_tokens import ShownTokens
from api.store.results import Results, _result_row
from api.store.tables import results
from broker.base import Message
from schemas.messages import Delta, Frame, Result, Usage, encode
from schemas.topology import RESULTS, RESULTS_KEY, reply_address
from tests.delivery.service import Answer, Service, check_same, job

Body = Callable[[Service, Answer], Awaitable[None]]


async def a_zombie_says_something_else(service: Service, whole: Answer) -> None:
    """A worker that has lost its job makes other tokens than the one that has it now."""
    engine, _ = await service.worker()
    async with service.asked(job()) as answer:
        await engine.until_added(1)
        await engine.step(5)
        await service.kill()
        engine, _ = await service.worker()
        await engine.until_added(1)
        await engine.step(5)
        shown = await service.shown("j1")
        stray = Delta(job="j1", epoch=0, offset=len(shown), text="stray", token_ids=[7, 7])
        frame = Frame(worker="zombie", deltas=[stray])
        await service.broker.publish(*reply_address(service.client.reader), Message(encode(frame)), confirm=False)
        await service.shown("j1")
        await engine.play()
        check_same(await answer, whole)


async def a_frame_comes_twice(service: Service, whole: Answer) -> None:
    engine, connection = await service.worker()
    async with service.asked(job()) as answer:
        await engine.until_added(1)
        publish = connection.inner.publish

        async def twice(exchange: str, key: str, message: Message, **options: Any) -> None:
            for _ in range(1 + (not options.get("confirm", True) and b'"deltas"' in message.body)):
                await publish(exchange, key, message, **options)

        connection.inner.publish = twice  # type: ignore[method-assign]
        await engine.play()
        check_same(await answer, whole)


async def a_result_comes_three_times(service: Service, whole: Answer) -> None:
    """With other figures each time, as from workers that each think the job theirs."""
    for count, tokens in enumerate((3, 5, 7), 1):
        result = Result(job="j1", model="m", outcome="completed", usage=Usage(completion_tokens=tokens))
        await service.broker.publish(RESULTS, RESULTS_KEY, Message(encode(result)))
        await service.recorded(count)
    assert (await service.ledger(job())).usage.completion_tokens == 3
    (total,) = await service.store.results.usage("")
    assert (total.jobs, total.completion_tokens) == (1, 3)
    assert (service.recorder.counts.recorded, service.recorder.counts.duplicates) == (1, 2)
    assert service.recorder.counts.dead == 0


def without_fencing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShownTokens, "is_current", lambda self, epoch: True)


def without_offsets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShownTokens, "is_new", lambda self, delta: self._finished.__setitem__(0, True) or True)


def without_the_ledgers_key(patch: pytest.MonkeyPatch) -> None:
    """A plain insert. The primary key is still there, so the transaction fails and the Result is taken for damaged."""

    async def plain(self: Results, transaction: Any, batch: list[Result]) -> set[str]:
        await transaction.execute(insert(results), [_result_row(result) for result in batch])
        return {result.job for result in batch}

    patch.setattr(Results, "_insert", plain)


MUTATIONS: list[tuple[Body, Callable[[pytest.MonkeyPatch], None]]] = [
    (a_zombie_says_something_else, without_fencing),
    (a_frame_comes_twice, without_offsets),
    (a_result_comes_three_times, without_the_ledgers_key),
]
BODIES = [body for body, _ in MUTATIONS]


@pytest.mark.parametrize("body", BODIES, ids=[body.__name__ for body in BODIES])
async def test_it_holds(service: Service, whole: Answer, body: Body) -> None:
    await body(service, whole)


@pytest.mark.parametrize(("body", "mutate"), MUTATIONS, ids=[mutate.__name__ for _, mutate in MUTATIONS])
async def test_it_needs_its_predicate(
    service: Service,
    whole: Answer,
    monkeypatch: pytest.MonkeyPatch,
    body: Body,
    mutate: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        await body(service, whole)
