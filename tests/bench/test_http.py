"""The load generator's figures are those of a server whose pace is known, and its failures have names."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from bench.http import goodput, load_of, measures, parser, quantiles
from bench.load import Load, Samples, bodies, run_load, run_share
from bench.streaming_client import StreamingClient
from tests.bench.fake_server import FakeServer, serving

FIRST, PACE = 0.05, 0.01


def load(url: str, **fields: Any) -> Load:
    settings = {"model": "m", "requests": 6, "concurrency": 2, "prompt_tokens": 4, "output_tokens": 5, "processes": 1}
    return Load(url=url, **{**settings, **fields})


async def run(wanted: Load) -> Samples:
    draw = random.Random(0)
    return await run_share(wanted, bodies(wanted, 0, draw), wanted.slots(0), draw, lambda: None)


async def test_times_are_the_servers() -> None:
    server = FakeServer(FIRST, PACE)
    async with serving(server) as url:
        samples = await run(load(url))
    assert server.connections == 2  # as many as are under way, each used again
    assert samples.tokens == 30
    assert not samples.errors
    assert len(samples.ttft) == len(samples.tpot) == 6
    assert min(samples.ttft) >= FIRST
    assert min(samples.tpot) >= PACE
    assert max(samples.gaps) >= PACE
    assert all(e2e >= FIRST + 5 * PACE for e2e in samples.e2e)
    figures = measures(samples)
    assert figures["output_tok_s"] == pytest.approx(30 / samples.seconds, rel=0.01)
    assert FIRST * 1000 <= figures["ttft_ms"]["p50"] <= figures["ttft_ms"]["p99"]


async def test_what_is_asked_for() -> None:
    server = FakeServer()
    async with serving(server) as url:
        await run(load(url, requests=1))
        await run(load(url, requests=1, chat=True))
    (path, plain), (chat_path, chat) = server.requests
    assert path == "/v1/completions"
    assert len(plain["prompt"]) == 4
    assert (plain["max_tokens"], plain["ignore_eos"], plain["stream_options"]) == (5, True, {"include_usage": True})
    assert chat_path == "/v1/chat/completions"
    assert len(chat["messages"][0]["content"].split()) == 4


@pytest.mark.parametrize(
    ("model", "kind"), [("full", "http 429"), ("broken", "error event stream_gap"), ("cut", "connection lost")]
)
async def test_failures_by_kind(model: str, kind: str) -> None:
    async with serving(FakeServer()) as url:
        samples = await run(load(url, model=model))
    assert samples.errors == {kind: 6}
    assert samples.e2e == []


async def test_a_refusal_says_when_to_come_again() -> None:
    async with serving(FakeServer()) as url:
        host, port = url.removeprefix("http://").split(":")
        client = StreamingClient(host, int(port), "/v1/completions", timeout=5)
        refused = await client.stream(b'{"model":"full"}')
        answered = await client.stream(b'{"model":"m","max_tokens":1}')
        client.close()
    assert (refused.error, refused.retry_after) == ("http 429", 7.0)
    assert (answered.error, answered.retry_after) == (None, None)


async def test_too_slow_and_not_there() -> None:
    async with serving(FakeServer(first=5.0)) as url:
        assert (await run(load(url, requests=1, timeout=0.05))).errors == {"timeout": 1}
    assert (await run(load(url, requests=1))).errors == {"no connection": 1}


async def test_a_rate_does_not_wait_for_answers() -> None:
    server = FakeServer(first=0.3)
    async with serving(server) as url:
        samples = await run(load(url, requests=20, rate=400.0, concurrency=1))
    assert server.connections > 1
    assert samples.seconds < 20 * 0.3
    assert not samples.errors


async def test_several_processes_share_the_load() -> None:
    server = FakeServer()
    async with serving(server) as url:
        samples = await asyncio.to_thread(run_load, load(url, requests=7, concurrency=3, processes=2))
    assert len(samples.e2e) == 7
    assert samples.tokens == 35
    assert len({json.dumps(request["prompt"]) for _, request in server.requests}) == 7


def test_prompts_follow_the_seed() -> None:
    def made(rank: int, seed: int) -> list[bytes]:
        wanted = load("", seed=seed, vocab_size=1000)
        return bodies(wanted, rank, random.Random(f"{seed}-{rank}"))

    assert made(0, 1) == made(0, 1)
    assert made(0, 1) != made(0, 2)
    assert made(0, 1) != made(1, 1)
    prompts = [json.loads(body)["prompt"] for body in made(0, 1)]
    assert all(300 <= token < 1000 for prompt in prompts for token in prompt)


def test_quantiles() -> None:
    assert quantiles([0.001 * number for number in range(100)], 50, 99) == {"p50": 50.0, "p99": 99.0}
    assert quantiles([0.002], 50, 99) == {"p50": 2.0, "p99": 2.0}
    assert quantiles([], 50) == {"p50": None}


def test_goodput_wants_every_limit_kept() -> None:
    samples = Samples(ttft=[0.1, 0.3, 0.1], tpot=[0.01, 0.01, 0.05], started=0.0, ended=2.0)
    samples.errors["timeout"] = 1
    assert goodput(samples, None, None) is None
    assert goodput(samples, 200.0, None) == {"request_s": 1.0, "share": 0.5}
    assert goodput(samples, 200.0, 20.0) == {"request_s": 0.5, "share": 0.25}


def test_no_more_processes_than_there_is_work() -> None:
    def processes(*flags: str) -> int:
        return load_of(parser().parse_args(["--model", "m", *flags])).processes

    assert processes() == 4
    assert processes("--concurrency", "2") == 2
    assert processes("--rate", "5", "--requests", "3") == 3
