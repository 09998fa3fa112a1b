"""The queue client against a worker that dies, repeats itself, leaves words out or never had the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import api.job_stream
import api.queue_client
from api.errors import ApiError
from api.job_stream import JobStream
from api.queue_client import QueueClient
from api.subscriptions import end
from broker.base import Broker, BrokerUnavailable, Message, PublishRejected
from broker.memory import MemoryBroker
from schemas.messages import Delta, Frame, Job, Result, ResumeQuery, SamplingParams, encode
from schemas.topology import reply_address
from tests.api.stub_worker import StubWorker


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[QueueClient]:
    made = QueueClient(broker, max_buffered_tokens=1000)
    await made.start()
    yield made
    await made.close()


def job(text: str, id: str = "j", stream: bool = True, **fields: Any) -> Job:
    return Job(id=id, model="stub", prompt=text, stream=stream, **fields)


async def read(stream: JobStream) -> tuple[str, Result]:
    """The text of choice 0, and the Result."""
    events = [event async for event in stream]
    text = "".join(event.text for event in events if isinstance(event, Delta) and event.choice == 0)
    assert isinstance(events[-1], Result)
    return text, events[-1]


async def tell(broker: Broker, client: QueueClient, frame: Frame) -> None:
    """A frame from a worker that the test plays."""
    seen = client.counters.frames
    await broker.publish(*reply_address(client.reader), Message(encode(frame)), confirm=False)
    async with asyncio.timeout(60):
        while client.counters.frames == seen:  # noqa: ASYNC110 - the client has no event to wait for
            await asyncio.sleep(0)


async def test_stream_and_result(client: QueueClient, worker: StubWorker) -> None:
    async with client.submit(job("a b c")) as stream:
        assert client.running_jobs == 1
        text, result = await read(stream)
    assert (text, result.outcome, client.running_jobs) == ("a b c", "completed", 0)
    assert worker.jobs["j"].reply_to == client.reader
    assert worker.cancelled == set()


@pytest.mark.parametrize("n", [1, 2])
async def test_a_worker_that_dies_costs_no_token_and_repeats_none(
    client: QueueClient, worker: StubWorker, n: int
) -> None:
    async with client.submit(job("crash b c d e", sampling=SamplingParams(n=n))) as stream:
        text, result = await read(stream)
    assert text == "crash b c d e"
    assert result.epoch == 1
    assert client.counters.resumes == 1
    assert worker.cancelled == set()


async def test_repetitions_and_stale_epochs_are_not_shown(client: QueueClient, worker: StubWorker) -> None:
    async with client.submit(job("repeat b c d e")) as stream:
        text, _ = await read(stream)
    assert text == "repeat b c d e"
    assert (client.counters.repeated_deltas, client.counters.stale_epochs) == (2, 1)


@pytest.mark.parametrize("text", ["gap b c d", "mute b"])
async def test_lost_tokens_that_nobody_has_are_an_error_not_a_shorter_answer(
    client: QueueClient, worker: StubWorker, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(api.job_stream, "REPAIR_SECONDS", 0.1)
    async with client.submit(job(text)) as stream:
        with pytest.raises(ApiError) as caught:
            await read(stream)
    assert caught.value.code == "stream_gap"
    assert (client.counters.gaps, client.counters.unrepaired) == (1, 1)
    question = worker.questions[0]
    assert (question.job, question.reply_to) == ("j", client.reader)
    assert question.shown == ([[0]] if text.startswith("gap") else [[]])


async def test_leaving_early_cancels_only_what_has_not_ended(client: QueueClient, worker: StubWorker) -> None:
    async with client.submit(job("a", "j1", stream=False), job("hang", "j2")) as stream:
        assert [event.job for event in await stream.take() if isinstance(event, Result)] == ["j1"]
    await worker.until_cancelled()
    assert worker.cancelled == {"j2"}


async def test_a_query_about_an_unknown_job_is_answered_with_cancel(
    broker: Broker, client: QueueClient, worker: StubWorker
) -> None:
    await tell(broker, client, Frame(worker="w", queries=[ResumeQuery(job="nobody", epoch=1)]))
    await worker.until_cancelled()
    assert worker.cancelled == {"nobody"}


async def test_tokens_for_nobody_are_answered_with_one_cancel(
    broker: Broker, client: QueueClient, worker: StubWorker
) -> None:
    for offset in range(3):
        delta = Delta(job="nobody", epoch=0, offset=offset, text="x", token_ids=[1])
        await tell(broker, client, Frame(worker="w", deltas=[delta]))
    await worker.until_cancelled()
    assert client.counters.unknown_jobs == 1


async def test_malformed_frames_are_counted_and_dropped(broker: Broker, client: QueueClient) -> None:
    await broker.publish(*reply_address(client.reader), Message(b"{}"), confirm=False)
    await tell(broker, client, Frame(worker="w"))
    assert client.counters.malformed_frames == 1


async def test_a_model_without_a_queue(client: QueueClient) -> None:
    with pytest.raises(ApiError) as caught:
        async with client.submit(Job(id="j", model="none", prompt="x")):
            pass
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert client.running_jobs == 0


@pytest.mark.parametrize(
    ("failure", "status", "code", "type"),
    [
        (PublishRejected("full"), 429, "queue_full", "rate_limit_error"),
        (BrokerUnavailable("gone"), 503, "broker_unavailable", "server_error"),
    ],
)
async def test_failures_to_publish(
    client: QueueClient, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int, code: str, type: str
) -> None:
    async def publish(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(MemoryBroker, "publish", publish)
    with pytest.raises(ApiError) as caught:
        async with client.submit(job("a")):
            pass
    error = caught.value
    assert (error.status, error.code, error.type) == (status, code, type)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 120
    assert client.running_jobs == 0


async def test_after_a_lost_connection_every_job_is_asked_about(client: QueueClient, worker: StubWorker) -> None:
    async with client.submit(job("hang-late b", "late"), job("hang", "queued")) as stream:
        await stream.take(5)
        assert client._subscription is not None
        client._subscription._queue.name = "the name after the reconnection"  # type: ignore[attr-defined]
        await worker.until_asked(2)
        assert {(asked.job, tuple(asked.shown[0])) for asked in worker.questions} == {("late", (0, 1)), ("queued", ())}
    assert client.counters.lost_reply_queues == 1


@pytest.fixture(autouse=True)
def watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.queue_client, "WATCH_SECONDS", 0.02)


async def test_closing_fails_what_is_open_and_cancels_it(broker: Broker, worker: StubWorker) -> None:
    client = QueueClient(broker)
    await client.start()
    async with client.submit(job("hang")) as stream:
        await worker.until_jobs(1)
        await client.close()
        with pytest.raises(ApiError) as caught:
            await stream.take(1)
    assert caught.value.code == "shutting_down"
    await worker.until_cancelled()


async def test_closing_goes_on_when_the_broker_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        queue = "q"

        async def cancel(self) -> None:
            raise BrokerUnavailable("connection refused")

    await end(Gone())
    assert "consumer of q not cancelled: connection refused" in caplog.text
    await end(None)
