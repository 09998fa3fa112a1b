"""Many short requests at once: no error, no leaked block, flat memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.service import MODEL, Service, served

pytestmark = pytest.mark.model
REQUESTS, CONCURRENCY, WARM = 1000, 32, 200
MAX_GROWTH = 0.05


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Service]:
    """A service of its own, whose cache is small enough for the warm-up to touch all of it: a page counts as memory
    from its first use on."""
    with served(tmp_path, "--kv-blocks", "128") as running:
        yield running


async def one(client: httpx.AsyncClient, number: int) -> None:
    """Every third is streamed, every second is a chat."""
    stream = number % 3 == 0
    chat = number % 2 == 0
    text = f"Number {number}"
    body = {"model": MODEL, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": stream}
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    answer = await client.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text
        assert '"error"' not in answer.text
    else:
        assert answer.json()["usage"]["completion_tokens"] == 4


async def many(service: Service, numbers: range) -> None:
    waiting = iter(numbers)
    limits = httpx.Limits(max_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:

        async def lane() -> None:
            for number in waiting:
                await one(client, number)

        await asyncio.gather(*(lane() for _ in range(CONCURRENCY)))


def resident(service: Service) -> int:
    """Bytes of the service and its children."""
    whole = psutil.Process(service.pid)
    return sum(process.memory_info().rss for process in (whole, *whole.children(recursive=True)))


async def test_a_thousand_requests(fresh: Service) -> None:
    await many(fresh, range(WARM))
    before = resident(fresh)
    await many(fresh, range(WARM, REQUESTS))
    after = resident(fresh)
    fresh.assert_idle()
    metrics = fresh.metrics()
    assert metrics["headrace_model_kv_blocks_total"] == 128
    assert metrics["headrace_answers_total"] == REQUESTS
    assert metrics["headrace_tokens_total"] > 4 * REQUESTS
    assert after < before * (1 + MAX_GROWTH), f"{before >> 20} MiB after {WARM} requests, {after >> 20} MiB at the end"
