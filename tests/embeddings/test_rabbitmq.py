"""Megabytes of vectors through a real RabbitMQ."""

from __future__ import annotations

import asyncio
import uuid

from api.embeddings import embedding_jobs, embeddings_body, parse_embeddings
from broker.amqp import AmqpBroker
from schemas.messages import Result
from tests.embeddings.test_delivery import EmbeddingService, VectorEngine
from tests.front.harness import MODEL

INPUTS, DIMENSIONS = 2048, 1024


async def work(engine: VectorEngine) -> None:
    """As an engine of its own would: whatever there is, as it comes."""
    while True:
        while not engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await engine.play()


async def test_a_whole_request_of_2048_inputs(amqp_vhost_url: str) -> None:
    service = EmbeddingService(lambda name: AmqpBroker(amqp_vhost_url, name=f"{name}-{uuid.uuid4().hex[:6]}"), None)
    await service.start()
    try:
        engine = await service.start_worker(DIMENSIONS)
        given = [[1 + index % 200] for index in range(INPUTS)]
        jobs = embedding_jobs(parse_embeddings({"model": MODEL, "input": given}), job_id="j")
        working = asyncio.create_task(work(engine))
        async with asyncio.timeout(120), service.client.submit(*jobs) as stream:
            results = {event.job: event async for event in stream if isinstance(event, Result)}
        working.cancel()
    finally:
        await service.close()
    body = embeddings_body("e", [results[job.id] for job in jobs])
    assert len(body["data"]) == INPUTS
    assert [len(one["embedding"]) for one in body["data"]] == [DIMENSIONS] * INPUTS
    assert [one["embedding"][:2] for one in body["data"]] == [[1.0, float(ids[0])] for ids in given]
