"""The same on a real RabbitMQ: what is promised rests on its redelivery and its confirmations."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from broker.amqp import AmqpBroker
from schemas.topology import MAX_ATTEMPTS
from tests.front.harness import EOS, REPLY, Bench, ids


@pytest.fixture
async def bench(amqp_vhost_url: str) -> AsyncIterator[Bench]:
    bench = Bench(lambda: AmqpBroker(amqp_vhost_url, name=f"test-{uuid.uuid4().hex[:8]}"))
    await bench.start()
    yield bench
    await bench.close()


async def test_a_worker_dies_in_mid_stream_and_another_is_drained(bench: Bench) -> None:
    first, _ = await bench.worker()
    await bench.submit(bench.job("a", sampling={"n": 2}))
    await bench.submit(bench.job("b", stream=False))
    await first.until_running(3)
    await first.step(6)
    await bench.reader.until(lambda: len(bench.reader.tokens["a", 1]) == 6)
    await bench.kill()

    second, worker = await bench.worker(resume_timeout=5.0)
    await second.until_running(3)
    assert sorted(len(request.output_token_ids) for request in second.added) == [0, 6, 6]
    await second.play()
    assert (await bench.reader.result("a")).epoch == 1
    assert (await bench.reader.result("b")).choices[0].text == REPLY
    assert [bench.reader.texts["a", choice] for choice in (0, 1)] == [REPLY] * 2
    assert bench.reader.tokens["a", 0] == [*ids(REPLY), EOS]

    await bench.results.until(2)
    await worker.drain(5.0)
    assert (bench.unsettled, len(bench.results.messages), await bench.ready()) == (0, 2, 0)


async def test_a_poison_job_ends_in_the_dead_letter_queue(bench: Bench) -> None:
    await bench.submit(bench.job())
    await bench.deliver_in_vain(MAX_ATTEMPTS)
    await bench.submit(b'{"id": "malformed"}')
    engine, _ = await bench.worker()
    assert (await bench.reader.result("j1")).outcome == "failed"
    await bench.dead.until(2)
    assert {"gave up" in str(message.headers["reason"]) for message in bench.dead.messages} == {True, False}
    assert engine.added == []
