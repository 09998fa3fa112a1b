"""A client that goes takes its jobs along, at once; one that waits is kept company."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from api.settings import ApiSettings
from tests.api.conftest import SETTINGS
from tests.api.stub_worker import StubWorker
from tests.api.test_completions import CHAT, PLAIN, chat, plain


async def open_request(server: str, body: dict[str, Any], path: str = CHAT) -> tuple[Any, asyncio.StreamWriter]:
    """A raw connection with the request sent, so that the test decides when it closes."""
    host, port = server.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_nothing_has_come(server: str, worker: StubWorker, stream: bool) -> None:
    _, writer = await open_request(server, chat("hang", stream=stream))
    await worker.until_jobs(1)
    await close(writer)
    await worker.until_cancelled()
    assert worker.cancelled == set(worker.jobs)


async def test_leaving_in_mid_stream(server: str, worker: StubWorker) -> None:
    reader, writer = await open_request(server, chat("hang-late b", stream=True))
    await asyncio.wait_for(reader.readuntil(b"hang-late"), 5)
    assert worker.cancelled == set()
    await close(writer)
    await worker.until_cancelled()


async def test_leaving_cancels_every_prompt(server: str, worker: StubWorker) -> None:
    _, writer = await open_request(server, plain(["hang", "hang", "hang"]), PLAIN)
    await worker.until_jobs(3)
    await close(writer)
    await worker.until_cancelled(3)
    assert worker.cancelled == set(worker.jobs)


@pytest.mark.parametrize("settings", [ApiSettings(hold_seconds=0.02, keep_alive_seconds=0.02, discovery_seconds=0.05)])
async def test_comments_keep_a_queued_stream_alive(server: str, worker: StubWorker) -> None:
    reader, writer = await open_request(server, chat("hang", stream=True))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    for _ in range(3):
        await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 5)
    await close(writer)
    await worker.until_cancelled()


@pytest.mark.parametrize("settings", [ApiSettings(request_timeout=0.05, discovery_seconds=0.05)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_takes_too_long_is_cancelled(
    http: httpx.AsyncClient, worker: StubWorker, stream: bool
) -> None:
    response = await http.post(CHAT, json=chat("hang", stream=stream))
    if stream:
        assert '"request_timeout"' in response.text
        assert "[DONE]" not in response.text
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    await worker.until_cancelled()


@pytest.mark.parametrize("settings", [ApiSettings(max_buffered_tokens=5000, discovery_seconds=0.05)])
async def test_a_reader_that_stalls_is_cut_off(server: str, worker: StubWorker) -> None:
    reader, writer = await open_request(server, chat("flood", stream=True))
    await worker.until_cancelled()
    async with asyncio.timeout(60):
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            read = await reader.read(1 << 20)
            assert read, tail
            tail = (tail + read)[-1000:]
    assert b'"slow_reader"' in tail
    await close(writer)


async def test_many_requests_leave_nothing_behind(server: str, worker: StubWorker) -> None:
    async with httpx.AsyncClient(base_url=server, timeout=30) as client:
        bodies = [chat(f"word{index} b", stream=index % 2 == 0) for index in range(100)]
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
        assert all(response.status_code == 200 for response in responses)
        assert all(f"word{index}" in response.text for index, response in enumerate(responses))
        assert "headrace_jobs_running 0.0" in (await client.get("/metrics")).text
    assert worker.cancelled == set()


def test_the_defaults_hold_the_status_line_for_a_while() -> None:
    assert ApiSettings().hold_seconds > ApiSettings().keep_alive_seconds > SETTINGS.keep_alive_seconds
