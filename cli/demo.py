"""`make demo`: the service on its embedded default, one streamed answer and one batch, to the terminal."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from workers.model.loaders.demo import DEMO_NAME

START_TIMEOUT = 600.0
STOP_TIMEOUT = 60.0
BATCH_TIMEOUT = 600.0
QUESTION = "Explain in two sentences what a message queue is for."
COUNTRIES = (
    *("France", "Japan", "Kenya", "Peru", "Canada", "Egypt", "Norway", "India", "Brazil", "Spain"),
    *("Greece", "Ireland", "Vietnam", "Ghana", "Chile", "Poland", "Nepal", "Cuba", "Iceland", "Morocco"),
)
NEXT = """
[bold]Next[/bold]
  make serve       the same service, up on port 8000 until Ctrl-C
  make test        every check and every test
  make bench-cpu   Headrace and transformers side by side on this CPU"""


def main() -> None:
    console = Console(highlight=False)
    started = time.monotonic()
    try:
        _demonstrate(console)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped") from None
    except httpx.HTTPError as error:
        raise SystemExit(f"the demo's request failed: {type(error).__name__}: {error}") from error
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")
    console.print(NEXT)


def _demonstrate(console: Console) -> None:
    with (
        tempfile.TemporaryDirectory() as data_dir,
        _service(console, data_dir) as url,
        httpx.Client(base_url=url, timeout=120.0) as client,
    ):
        _stream(console, client)
        _batch(console, client)
        console.print()


@contextmanager
def _service(console: Console, data_dir: str) -> Iterator[str]:
    """A `headrace serve` child on a free port, stopped by SIGTERM. Yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port), "--data-dir", data_dir]
    child = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        _wait_ready(f"http://127.0.0.1:{port}", child)
        yield f"http://127.0.0.1:{port}"
    finally:
        code = _stop(child)
    if code != 0:
        raise SystemExit(f"the service ended with exit code {code}")


def _stop(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _wait_ready(url: str, child: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit:
        if child.poll() is not None:
            raise SystemExit(f"the service ended with exit code {child.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/ready", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise SystemExit(f"the service is not ready after {START_TIMEOUT:.0f} s")


def _stream(console: Console, client: httpx.Client) -> None:
    console.print(f"\n[bold]A streamed chat completion[/bold]\n> {QUESTION}")
    body = {
        "model": DEMO_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 96,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"the service answered {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                _show(console, json.loads(line[6:]))


def _show(console: Console, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise SystemExit(f"the stream failed: {chunk['error']['message']}")
    for choice in chunk["choices"]:
        console.print(choice["delta"].get("content") or "", end="", markup=False)
    if chunk.get("usage"):
        console.print(f"\n[dim]usage: {_usage(chunk['usage'])}[/dim]")


def _usage(usage: dict[str, Any]) -> str:
    return f"{usage['prompt_tokens']} prompt + {usage['completion_tokens']} completion tokens"


def _batch(console: Console, client: httpx.Client) -> None:
    console.print(f"\n[bold]A batch of {len(COUNTRIES)} lines[/bold]")
    lines = [
        {
            "custom_id": country,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": DEMO_NAME,
                "messages": [{"role": "user", "content": f"What is the capital of {country}?"}],
                "max_tokens": 24,
                "temperature": 0,
            },
        }
        for country in COUNTRIES
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = _ok(client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("capitals.jsonl", content)}))
    request = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = _poll(console, client, _ok(client.post("/v1/batches", json=request)))
    if batch["status"] != "completed" or batch["request_counts"]["completed"] != len(COUNTRIES):
        raise SystemExit(f"the batch ended as {batch['status']}: {json.dumps(batch)}")
    output = client.get(f"/v1/files/{batch['output_file_id']}/content").text
    for line in map(json.loads, output.splitlines()):
        answer = line["response"]["body"]["choices"][0]["message"]["content"].replace("\n", " ")
        console.print(f"  {line['custom_id']:<8} {answer}", markup=False)
    if batch.get("usage"):
        usage = batch["usage"]
        console.print(f"[dim]usage: {usage['input_tokens']} prompt + {usage['output_tokens']} completion tokens[/dim]")


def _poll(console: Console, client: httpx.Client, batch: dict[str, Any]) -> dict[str, Any]:
    limit = time.monotonic() + BATCH_TIMEOUT
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(batch["status"], total=len(COUNTRIES))
        while time.monotonic() < limit:
            batch = _ok(client.get(f"/v1/batches/{batch['id']}"))
            counts = batch["request_counts"]
            progress.update(task, description=batch["status"], completed=counts["completed"] + counts["failed"])
            if batch["status"] in ("completed", "failed", "expired", "cancelled"):
                return batch
            time.sleep(0.2)
    raise SystemExit(f"the batch has not ended after {BATCH_TIMEOUT:.0f} s: {json.dumps(batch)}")


def _ok(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        raise SystemExit(f"{response.request.url} answered {response.status_code}: {response.text}")
    value: dict[str, Any] = response.json()
    return value


if __name__ == "__main__":
    main()
