"""A whole service under test, and what its /metrics say about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.headrace import Running

MODEL = "smollm2-135m-instruct"
IDLE = ("headrace_jobs_running", "headrace_model_running", "headrace_model_waiting", "headrace_model_kv_blocks_used")
IDLE_TIMEOUT = 15.0
STATUS_SECONDS = 2.5
"""Workers announce themselves every two seconds: figures older than that are of another time."""
BATCH_ENDS = ("completed", "failed", "expired", "cancelled")
BATCH_TIMEOUT = 120.0


@dataclass(frozen=True)
class Service:
    """A running `headrace serve` or `headrace api`."""

    url: str
    pid: int

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120.0, **settings)

    def metrics(self) -> dict[str, float]:
        """Sums of every metric over its labels."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=30).text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def assert_idle(self) -> None:
        """Fails where a job, an engine request or a cache block is still in use after a while."""
        limit = time.monotonic() + IDLE_TIMEOUT
        while True:
            metrics = self.metrics()
            busy = {name: metrics[name] for name in IDLE if metrics[name]}
            if not busy:
                return
            assert time.monotonic() < limit, f"still in use: {busy}"
            time.sleep(0.2)


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[Service]:
    """`headrace serve` with the demo model on its embedded default, ended in order."""
    # Threads that wait without spinning: the tests share the machine's cores.
    running = Running(
        folder / "serve.log", "serve", "--port", "0", "--data-dir", str(folder), *flags, OMP_WAIT_POLICY="PASSIVE"
    )
    try:
        yield Service(running.wait_for(r"ready: \S+ at (http://[\d.:]+)/v1")[1], running.process.pid)
        assert running.stop() == 0, running.log.read_text()
        assert "Traceback" not in running.log.read_text(), running.log.read_text()
    finally:
        running.kill()


def run_batch(client: httpx.Client, content: bytes, endpoint: str) -> dict[str, Any]:
    """Upload `content`, make a batch of it and wait for its end."""
    batch = start_batch(client, content, endpoint)
    return wait_batch(client, batch["id"])


def start_batch(client: httpx.Client, content: bytes, endpoint: str) -> dict[str, Any]:
    file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)}).json()
    made = client.post(
        "/v1/batches", json={"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    )
    assert made.status_code == 200, made.text
    batch: dict[str, Any] = made.json()
    return batch


def wait_batch(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    limit = time.monotonic() + BATCH_TIMEOUT
    while time.monotonic() < limit:
        batch: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
        if batch["status"] in BATCH_ENDS:
            return batch
        time.sleep(0.1)
    raise AssertionError(f"the batch has not ended: {batch}")
