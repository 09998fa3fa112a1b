"""`headrace serve` from its start to its end, with the demo model."""

from __future__ import annotations

import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cli.conftest import Start
from tests.cli.headrace import Running

pytestmark = pytest.mark.model
MODEL = "smollm2-135m-instruct"
READY = r"ready: (\S+) at (http://[\d.:]+)/v1 \(embedded broker\)"


def ask(content: str, **parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, **parameters}


def test_start_one_completion_and_a_clean_end(start: Start, tmp_path: Path) -> None:
    served = start("serve", "--port", "0", "--data-dir", str(tmp_path))
    found = served.wait_for(READY)
    assert found[1] == MODEL
    with httpx.Client(base_url=found[2], timeout=60) as client:
        assert client.get("/ready").json() == {"status": "ready"}
        answer = client.post("/v1/chat/completions", json=ask("What is the capital of France?", max_tokens=8)).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert served.stop(signal.SIGTERM) == 0
    log = served.log.read_text()
    assert "open to this machine only" in log
    assert f"try: curl {found[2]}/v1/chat/completions" in log
    assert log.endswith("stopped\n")
    assert "Traceback" not in log
    assert usage_rows(tmp_path) == [("completed", answer["usage"]["completion_tokens"])]


def usage_rows(folder: Path) -> list[tuple[str, int]]:
    """What the ledger holds after the end."""
    with sqlite3.connect(folder / "headrace.db") as database:
        rows = database.execute("select outcome, completion_tokens from results join usage using (job_id)").fetchall()
    database.close()
    return rows


def test_a_stream_under_way_is_finished_before_the_end(start: Start, tmp_path: Path) -> None:
    served = start("serve", "--port", "0", "--data-dir", str(tmp_path))
    url = served.wait_for(READY)[2]
    body = ask("Count from 1 to 100.", stream=True, max_tokens=60, ignore_eos=True)
    with (
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as got,
    ):
        lines = got.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        served.process.send_signal(signal.SIGINT)
        events = [first, *(line for line in lines if line.startswith("data: "))]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert served.process.wait(100) == 0
    assert usage_rows(tmp_path) == [("completed", 60)]


def test_a_signal_while_the_model_loads_ends_it_too(start: Start, tmp_path: Path) -> None:
    served = start("serve", "--port", "0", "--data-dir", str(tmp_path))
    served.wait_for("loading demo")
    assert served.stop() == 0
    assert served.log.read_text().endswith("stopped\n")


def test_an_engine_that_dies_costs_a_pause(start: Start, tmp_path: Path) -> None:
    # fp32: what is computed anew, in larger pieces, rounds to the same tokens.
    served = start("serve", "--port", "0", "--data-dir", str(tmp_path), "--dtype", "float32")
    url = served.wait_for(READY)[2]
    body = ask("Count from 1 to 100.", max_tokens=80, ignore_eos=True)
    with httpx.Client(base_url=url, timeout=90) as client:
        whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as got:
            lines = (line for line in got.iter_lines() if line.startswith("data: "))
            events = [next(lines) for _ in range(10)]
            engine_of(served).kill()
            events += lines
    assert events[-1] == "data: [DONE]"
    assert "".join(json.loads(event[6:])["choices"][0]["delta"].get("content") or "" for event in events[:-1]) == whole
    assert served.stop() == 0
    assert "exit code -9: loading it again" in served.log.read_text()
    assert usage_rows(tmp_path) == [("completed", 80)] * 2


def test_an_engine_that_dies_again_and_again_ends_the_service(start: Start, tmp_path: Path) -> None:
    served = start("serve", "--port", "0", "--data-dir", str(tmp_path), "--max-model-len", "256")
    served.wait_for(READY)
    for deaths in range(4):
        served.wait_for(rf"(?s)(loaded demo.*){{{deaths + 1}}}")
        engine_of(served).kill()
    assert served.process.wait(30) == 1
    last = served.log.read_text().splitlines()[-1]
    assert last == "headrace: the worker failed: EngineDiedError: the engine process ended with exit code -9"


def engine_of(served: Running) -> psutil.Process:
    """The engine process of a running service: the child that has loaded a model."""
    return max(psutil.Process(served.process.pid).children(), key=lambda child: child.memory_info().rss)
