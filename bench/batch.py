"""`headrace bench batch`: a batch of many lines through the service, and the memory of each of its processes meanwhile.

The shipped commands run around an engine without a model whose steps take a fixed time. The input is written as it is
uploaded and the output read as it is checked, so that this client stays small too. One JSON line: lines a second from the
upload's end to the batch's, lines answered (each once, with the right text's length), and the resident memory of each
process in MiB before, at its highest, and after.

With --amqp-url worker, api and jobs are processes of their own on that broker (give it a virtual host without other
users), without one the embedded broker joins them in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO, Any

import httpx

from bench.load import to_stderr
from bench.paced_stack import MIB, add_stack_arguments, paced_stack
from bench.stack import Stack, running
from cli.settings import served_name

ENDPOINT = "/v1/completions"
SAMPLE_SECONDS = 0.5
POLL_SECONDS = 1.0
TIMEOUT = 600.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench batch", description=__doc__)
    made.add_argument("--lines", type=int, default=50_000)
    made.add_argument("--prompt-bytes", type=int, default=200, help="of each line")
    made.add_argument("--output-tokens", type=int, default=8)
    add_stack_arguments(made, step_ms=2.0, max_running=256)
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    with running(paced_stack(options)) as stack:
        report = run(options, stack)
    print(json.dumps(report), flush=True)
    sys.exit(0 if report["answered_once"] == options.lines else 1)


class Memory:
    """Resident MiB of each process, looked at twice a second while the block lasts."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self.before = self.highest = self.after = self._look()

    def __enter__(self) -> Memory:
        self._watching.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        self._watching.join()
        self.after = self._look()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            now = self._look()
            self.highest = {name: list(map(max, self.highest[name], sizes)) for name, sizes in now.items()}

    def _look(self) -> dict[str, list[float]]:
        sizes = self._stack.resident_bytes()
        return {name: [round(each / MIB, 1) for each in of_one] for name, of_one in sizes.items()}


def run(options: argparse.Namespace, stack: Stack) -> dict[str, Any]:
    """The report."""
    with TemporaryFile() as lines, Memory(stack) as memory, httpx.Client(base_url=stack.url, timeout=TIMEOUT) as http:
        for line in input_lines(options):
            lines.write(line)
        size = lines.tell()
        began = time.monotonic()
        batch = _submit(http, lines)
        uploaded = time.monotonic()
        batch = _until_ended(http, batch)
        ended = time.monotonic()
        answered = _answered_once(http, batch, options.output_tokens)
        read = time.monotonic()
    return {
        "broker": "rabbitmq" if options.amqp_url else "embedded",
        "lines": options.lines,
        "input_mib": round(size / MIB, 1),
        "status": batch["status"],
        "answered_once": answered,
        "counts": batch["request_counts"],
        "lines_s": round(options.lines / (ended - uploaded), 1),
        "seconds": {"upload": uploaded - began, "batch": ended - uploaded, "download": read - ended},
        "resident_mib": {"before": memory.before, "highest": memory.highest, "after": memory.after},
    }


def input_lines(options: argparse.Namespace) -> Iterator[bytes]:
    """Of the batch's input file."""
    for number in range(options.lines):
        prompt = f"{number} ".ljust(options.prompt_bytes, "x")
        body = {
            "model": served_name(options.model),
            "prompt": prompt,
            "max_tokens": options.output_tokens,
            "ignore_eos": True,
        }
        line = {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body}
        yield json.dumps(line).encode() + b"\n"


def _submit(http: httpx.Client, lines: IO[bytes]) -> dict[str, Any]:
    lines.seek(0)
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", lines)})
    file.raise_for_status()
    wanted = {"input_file_id": file.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=wanted)
    batch.raise_for_status()
    made: dict[str, Any] = batch.json()
    return made


def _until_ended(http: httpx.Client, batch: dict[str, Any]) -> dict[str, Any]:
    told = time.monotonic()
    while batch["status"] in ("validating", "in_progress", "finalizing"):
        time.sleep(POLL_SECONDS)
        batch = http.get(f"/v1/batches/{batch['id']}").raise_for_status().json()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            to_stderr(f"{batch['status']}: {batch['request_counts']}")
    return batch


def _answered_once(http: httpx.Client, batch: dict[str, Any], tokens: int) -> int:
    """Lines of the output file, one for each custom id, with as many tokens as were asked for."""
    seen: set[str] = set()
    good = 0
    with http.stream("GET", f"/v1/files/{batch['output_file_id']}/content") as content:
        content.raise_for_status()
        for text in content.iter_lines():
            line = json.loads(text)
            usage = line["response"]["body"]["usage"]
            good += line["custom_id"] not in seen and usage["completion_tokens"] == tokens
            seen.add(line["custom_id"])
    return good
