"""Batch work beside interactive requests on a tiny model: the figures hang together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.main import main
from bench.tiny_model import write_tiny_model


def test_interference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_model(tmp_path))
    flags = ["--device", "cpu", "--threads", "1", "--max-running", "8", "--max-model-len", "128"]
    sizes = ["--prompt-tokens", "16", "--output-tokens", "16", "--batch-step-tokens", "12"]
    main(["interference", "--model", model, "--loads", "0.3", "--seconds", "1.5", *flags, *sizes])
    report = json.loads(capsys.readouterr().out)
    alone, beside = report["alone"], report["beside"]
    assert report["interactive_request_s"] == pytest.approx(0.3 * report["capacity_tok_s"] / 16, rel=0.01)
    assert alone["requests"] > 10
    assert alone["batch_tok_s"] == 0 < beside["batch_tok_s"]
    assert report["ttft_p99_factor"] == pytest.approx(beside["ttft_ms"]["p99"] / alone["ttft_ms"]["p99"], rel=0.01)
    left = report["capacity_tok_s"] - beside["interactive_tok_s"]
    assert report["batch_share_of_what_is_left"] == pytest.approx(beside["batch_tok_s"] / left, rel=0.01)
