"""Services that other libraries' clients talk to. These tests run in an environment of their own (`make test-clients`), since
what they need is pinned otherwise than what the service needs; in the service's they are not collected."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MODEL = "smollm2-135m-instruct"
START_TIMEOUT, STOP_TIMEOUT = 240.0, 60.0

collect_ignore_glob = [] if importlib.util.find_spec("litellm") else ["test_*.py"]


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[str]:
    """The base URL of `headrace serve` with the demo model."""
    log = folder / "serve.log"
    command = [os.environ["HEADRACE"], "serve", "--port", "0", "--data-dir", str(folder), "--threads", "1", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _url(process, log)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit and process.poll() is None:
        if found := re.search(r"ready: \S+ at (http://[\d.:]+/v1)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("text"), "--tool-parser", "hermes") as made:
        yield made


@pytest.fixture(scope="session")
def embedding_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("vectors"), "--task", "embed") as made:
        yield made
