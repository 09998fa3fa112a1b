"""How `pytest -n` shares out the tests: in parts, each run in order by one process, the long ones first.

A part is a file; tests of one live service are a part too, whichever files they are in, so that it is started once. Each
process has a RabbitMQ and a Postgres of its own, started when a test first asks: tests kill them, and stop them for a while.
"""

from __future__ import annotations

import pytest

LIVE = {"cli": "live_url", "e2e": "service"}
"""By folder, the fixture that is a whole service with the demo model."""
LONGEST = (
    "tests/chaos/",
    "tests/e2e/test_numbers.py",
    "tests/cli/test_serve.py",
    "tests/e2e/",
    "tests/delivery/test_rabbitmq.py",
    "tests/cli/",
    "tests/broker/test_recovery.py",
    "tests/admission/test_integration.py",
    "tests/kernels/",
    "tests/models/",
    "tests/embeddings/",
    "tests/engine/",
    "tests/loaders/",
    "tests/bench/",
)
"""Where what takes longest is: a long part that began last would be waited for alone."""


def share_out(items: list[pytest.Item]) -> None:
    """Mark each test with its part, and sort: once for every process, all alike."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_part(item)))
    items.sort(key=lambda item: _rank(item.nodeid))


def _part(item: pytest.Item) -> str:
    folder = item.path.parent.name
    live = LIVE.get(folder)
    return f"{folder} {live}" if live in getattr(item, "fixturenames", ()) else item.nodeid.split("::")[0]


def _rank(nodeid: str) -> int:
    return next((rank for rank, place in enumerate(LONGEST) if nodeid.startswith(place)), len(LONGEST))
