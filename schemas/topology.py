"""Every exchange and queue, declared once. Brokers declare it idempotently at start; `headrace topology` does it by hand.

headrace.requests (direct)   key "<model>.<class>"  ──►  headrace.requests.<model>.<class>   quorum, delivery limit
headrace.results  (direct)   key "results"          ──►  headrace.results                    quorum
headrace.dead     (direct)   key "dead"             ──►  headrace.dead                       quorum
headrace.control  (fanout)                          ──►  one exclusive queue per worker
headrace.status   (fanout)                          ──►  one exclusive queue per api process
headrace.places   (fanout)                          ──►  one exclusive queue per api process
headrace.replies  (direct)   key = reader's name    ──►  one exclusive queue per api process, another after a lost connection
"" (default)      key = queue name                  ──►  reply queues of direct publishers
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from schemas.messages import JobClass

REQUESTS = "headrace.requests"
RESULTS = "headrace.results"
DEAD = "headrace.dead"
CONTROL = "headrace.control"
STATUS = "headrace.status"
PLACES = "headrace.places"
REPLIES = "headrace.replies"
RESULTS_KEY = "results"
DEAD_KEY = "dead"

JOB_CLASSES: tuple[JobClass, ...] = ("interactive", "batch")
MAX_ATTEMPTS = 12
"""Deliveries of one job before the worker itself ends it as failed and dead-letters it. From the fourth on suspects run
one by one (`workers/front/suspects.py`), so that hardly any job gets here by another's fault."""
BROKER_DELIVERY_LIMIT = 20
"""The broker's own limit, a backstop above MAX_ATTEMPTS."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: Literal["direct", "fanout"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue, bound to one exchange by one key. `max_length` rejects publishes beyond it; None: no limit."""

    name: str
    exchange: str
    routing_key: str
    delivery_limit: int | None = None
    dead_letter: bool = False
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...] = field(default=())


def request_key(model: str, job_class: JobClass) -> str:
    """Routing key of a request for `model` of `job_class`."""
    return f"{model}.{job_class}"


def request_queue(model: str, job_class: JobClass, max_length: int | None = 100_000) -> Queue:
    """The queue which holds the requests of one model and class."""
    key = request_key(model, job_class)
    return Queue(
        name=f"{REQUESTS}.{key}",
        exchange=REQUESTS,
        routing_key=key,
        delivery_limit=BROKER_DELIVERY_LIMIT,
        dead_letter=True,
        max_length=max_length,
    )


def reply_address(reader: str) -> tuple[str, str]:
    """Exchange and routing key of a job's `reply_to`. The name of an api process stays when its queue is lost with its
    connection; any other name is that of a queue."""
    return (REPLIES if reader.startswith(f"{REPLIES}.") else "", reader)


def topology(models: tuple[str, ...] = ()) -> Topology:
    """The whole topology, with the request queues of `models`."""
    exchanges = (
        Exchange(REQUESTS, "direct"),
        Exchange(RESULTS, "direct"),
        Exchange(DEAD, "direct"),
        Exchange(CONTROL, "fanout"),
        Exchange(STATUS, "fanout"),
        Exchange(PLACES, "fanout"),
        Exchange(REPLIES, "direct"),
    )
    queues = [Queue(RESULTS, RESULTS, RESULTS_KEY), Queue(DEAD, DEAD, DEAD_KEY)]
    queues += [request_queue(model, job_class) for model in models for job_class in JOB_CLASSES]
    return Topology(exchanges, tuple(queues))
