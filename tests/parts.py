"""In which order the files of tests go to the processes of `pytest -n`: one that takes long and began last would be waited
for alone."""

from __future__ import annotations

import pytest

LONGEST = (
    "tests/chaos/",
    "tests/e2e/test_numbers.py",
    "tests/kernels/test_attention.py",
    "tests/cli/test_serve.py",
    "tests/embeddings/",
    "tests/models/",
    "tests/e2e/",
    "tests/kernels/",
    "tests/delivery/test_rabbitmq.py",
    "tests/cli/",
    "tests/bench/",
    "tests/engine/",
    "tests/loaders/",
    "tests/broker/test_recovery.py",
    "tests/admission/test_integration.py",
    "tests/jobs/",
)


def sort(items: list[pytest.Item]) -> None:
    """The same order in every process, as pytest-xdist wants it."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    return next((rank for rank, place in enumerate(LONGEST) if nodeid.startswith(place)), len(LONGEST))
