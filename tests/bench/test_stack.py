"""The shipped commands around an engine at a fixed pace: what they add, and how several api processes end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import httpx
import psutil
import pytest

from bench.main import main
from bench.paced_engine import run_paced_engine
from bench.stack import Stack, StackSettings, running
from workers.front.engine_client import ProcessEngine

pytestmark = pytest.mark.model
MODEL = "smollm2-135m-instruct"
STEP_SECONDS = 0.01
TOKENS = 100
PROCESSES = 2


@pytest.fixture
def stack(amqp_vhost_url: str) -> Iterator[Stack]:
    engine = partial(ProcessEngine, target=partial(run_paced_engine, STEP_SECONDS))
    with running(StackSettings(model="demo", amqp_url=amqp_vhost_url, processes=PROCESSES, new_engine=engine)) as made:
        yield made


def api_processes(stack: Stack) -> list[psutil.Process]:
    """Those that serve, without their parent."""
    pid = stack.processes["api"].pid
    assert pid is not None
    port = int(stack.url.rsplit(":", 1)[1])
    children = psutil.Process(pid).children()
    return [child for child in children if any(link.laddr.port == port for link in child.net_connections("tcp"))]


def test_streams_end_whole_when_the_api_is_told_to_stop(stack: Stack) -> None:
    assert len(api_processes(stack)) == PROCESSES
    body = {"model": MODEL, "prompt": [5], "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{stack.url}/v1/completions", json=body, timeout=30) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        first = next(lines)
        stack.processes["api"].terminate()
        rest = [line for line in lines if line]
    assert first.startswith("data: {")
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    stack.processes["api"].join(20)
    assert stack.processes["api"].exitcode == 0


def test_connections_are_spread_over_the_processes(stack: Stack) -> None:
    clients = [httpx.Client() for _ in range(64)]
    for client in clients:
        assert client.get(f"{stack.url}/health").status_code == 200
    port = int(stack.url.rsplit(":", 1)[1])
    counts = [
        sum(link.laddr.port == port and link.status == "ESTABLISHED" for link in process.net_connections("tcp"))
        for process in api_processes(stack)
    ]
    for client in clients:
        client.close()
    assert sum(counts) >= 64
    assert min(counts) >= 16  # of 64 by chance: once in 40,000


def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    main(["overhead", "--requests", "4", "--output-tokens", "8", "--step-ms", "5"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["errors"] == {}
    assert figures["in_process"]["ttft_ms"]["p50"] >= 5
    assert figures["through_service"]["ttft_ms"]["p50"] > figures["in_process"]["ttft_ms"]["p50"]
    assert figures["added_ttft_p50_ms"] > 0
    assert figures["cpu_us_per_token"]["serve"][0] > 0
