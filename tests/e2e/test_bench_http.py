"""`headrace bench http` against the service itself."""

from __future__ import annotations

import json

import pytest

from tests.cli.headrace import run
from tests.e2e.service import MODEL, Service

pytestmark = pytest.mark.model


@pytest.mark.parametrize("flags", [("--concurrency", "3"), ("--rate", "20", "--chat")])
def test_a_small_load(service: Service, flags: tuple[str, ...]) -> None:
    sizes = ["--requests", "6", "--prompt-tokens", "8", "--output-tokens", "5", "--vocab-size", "40000"]
    limits = ["--goodput-ttft-ms", "600000", "--goodput-tpot-ms", "600000"]
    ended = run("bench", "http", "--url", service.url, "--model", MODEL, *sizes, *limits, *flags)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert (figures["completed"], figures["errors"]) == (6, {})
    assert figures["output_tok_s"] * figures["seconds"] == pytest.approx(30, rel=0.02)
    assert 0 < figures["ttft_ms"]["p50"] <= figures["e2e_ms"]["p50"]
    assert figures["goodput"]["share"] == 1.0


def test_nothing_to_measure(service: Service) -> None:
    ended = run("bench", "http", "--url", service.url, "--model", "nothing", "--requests", "2", "--concurrency", "1")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["errors"] == {"http 404": 2}
