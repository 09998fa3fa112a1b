"""A live `headrace serve` with the demo model, shared by the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.headrace import Running

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts commands that run on; those that still do at the end of the test are killed."""
    started: list[Running] = []

    def begin(*arguments: str, **variables: str) -> Running:
        started.append(Running(tmp_path / f"{arguments[0]}-{len(started)}.log", *arguments, **variables))
        return started[-1]

    yield begin
    for running in started:
        running.kill()


@pytest.fixture(scope="session")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the demo model on its embedded default."""
    folder = tmp_path_factory.mktemp("live")
    running = Running(folder / "serve.log", "serve", "--port", "0", "--data-dir", str(folder))
    try:
        yield running.wait_for(r"ready: \S+ at (http://[\d.:]+)/v1")[1]
        assert running.stop() == 0, running.log.read_text()
    finally:
        running.kill()
