"""Where RabbitMQ's versions differ: checked on what we send and read, as one version only is at hand."""

from __future__ import annotations

from typing import Any

import pytest

from broker.amqp.consumer import delivery_count
from broker.amqp.declare import queue_arguments
from schemas.topology import DEAD, DEAD_KEY, RESULTS, RESULTS_KEY, Queue, request_queue


@pytest.mark.parametrize("version", [(3, 10, 8), (4, 3, 0)])
def test_request_queues_have_limits_and_safe_dead_letters(version: tuple[int, ...]) -> None:
    assert queue_arguments(request_queue("m", "batch", max_length=9), version) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": DEAD,
        "x-dead-letter-routing-key": DEAD_KEY,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-max-length": 9,
    }


@pytest.mark.parametrize(("version", "limit"), [((3, 10, 8), None), ((3, 13, 7), None), ((4, 0, 0), -1), ((4, 3), -1)])
def test_a_queue_without_a_limit_has_none_in_any_version(version: tuple[int, ...], limit: int | None) -> None:
    arguments = queue_arguments(Queue(RESULTS, RESULTS, RESULTS_KEY), version)
    assert arguments.get("x-delivery-limit") == limit


@pytest.mark.parametrize(
    ("headers", "redelivered", "count"),
    [
        ({}, False, 0),
        ({}, True, 1),
        ({"x-delivery-count": 3}, True, 3),
        ({"x-delivery-count": 0, "x-acquired-count": 2}, True, 2),
        ({"x-acquired-count": 1}, True, 1),
    ],
)
def test_earlier_deliveries_are_counted(headers: dict[str, Any], redelivered: bool, count: int) -> None:
    assert delivery_count(headers, redelivered) == count
