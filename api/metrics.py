"""Prometheus metrics of one api process, in a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.admission import Admission
from api.disconnect import ClientGone
from api.models import ModelRegistry
from api.queue_client import QueueClient
from schemas.messages import Usage

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
MODEL_GAUGES = (
    "workers",
    "running",
    "waiting",
    "queued_tokens",
    "kv_blocks_used",
    "kv_blocks_total",
    "tokens_per_second",
)
ANSWER_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """Counts and times; `render` is the text that Prometheus scrapes."""

    def __init__(self, client: QueueClient, models: ModelRegistry, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LiveCollector(client, models, admission))
        self.requests = Counter(
            "headrace_http_requests", "HTTP requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.answers = Counter(
            "headrace_answers", "Completions by how they ended.", ("model", "outcome"), registry=self.registry
        )
        self.tokens = Counter(
            "headrace_tokens", "Tokens of completed answers.", ("model", "kind"), registry=self.registry
        )
        self.first_token = self._histogram(
            "headrace_time_to_first_token_seconds", "Submit to first token, streamed.", FIRST_TOKEN_BUCKETS
        )
        self.inter_token = self._histogram(
            "headrace_inter_token_seconds", "Time between tokens of one choice, streamed.", INTER_TOKEN_BUCKETS
        )
        self.answer_time = self._histogram("headrace_answer_seconds", "Submit to the end of an answer.", ANSWER_BUCKETS)
        self.queue_ready = Gauge(
            "headrace_queue_ready_messages", "Requests waiting in a queue.", ("queue",), registry=self.registry
        )
        self.up = Gauge(
            "headrace_up", "Whether a service answered the last probe.", ("service",), registry=self.registry
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("model",), buckets=buckets, registry=self.registry)


class JobTimer:
    """Times one answer; a context manager around all of it. `choices` is how many tokens come at a time. Of a replay
    only the ending counts: its tokens were counted the first time."""

    def __init__(self, metrics: Metrics, model: str, choices: int, *, is_replay: bool = False) -> None:
        self.outcome = "replayed" if is_replay else "completed"
        self._is_replay = is_replay
        self._metrics = metrics
        self._model = model
        self._choices = choices
        self._started = 0.0
        self._last = 0.0
        self._inter_token = metrics.inter_token.labels(model)

    def __enter__(self) -> JobTimer:
        self._started = time.perf_counter()
        return self

    def tokens(self, count: int) -> None:
        """`count` tokens have just come, over all choices."""
        if not count or self._is_replay:
            return
        now = time.perf_counter()
        if self._last:
            self._inter_token.observe((now - self._last) / max(1.0, count / self._choices))
        else:
            self._metrics.first_token.labels(self._model).observe(now - self._started)
        self._last = now

    def used(self, usage: Usage) -> None:
        """The token counts of a job that completed."""
        if self._is_replay:
            return
        self._metrics.tokens.labels(self._model, "prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels(self._model, "cached_prompt").inc(usage.cached_tokens)
        self._metrics.tokens.labels(self._model, "completion").inc(usage.completion_tokens)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, ClientGone):
            self.outcome = "disconnected"
        elif error is not None:
            self.outcome = "failed"
        self._metrics.answers.labels(self._model, self.outcome).inc()
        self._metrics.answer_time.labels(self._model).observe(time.perf_counter() - self._started)


class _LiveCollector(Collector):
    """What the queue client, the model registry and admission know at the moment of the scrape."""

    def __init__(self, client: QueueClient, models: ModelRegistry, admission: Admission) -> None:
        self._client = client
        self._models = models
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("headrace_jobs_running", "Jobs waited for here.", self._client.running_jobs)
        for name, value in asdict(self._client.counters).items():
            yield CounterMetricFamily(f"headrace_reader_{name}", f"Reply reader: {name.replace('_', ' ')}.", value)
        for name in MODEL_GAUGES:
            yield self._of_models(GaugeMetricFamily, name)
        yield self._of_models(CounterMetricFamily, "preemptions")
        yield from self._of_admission()

    def _of_admission(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily("headrace_admissions", "Requests by decision.", labels=["model", "decision"])
        for labels, count in self._admission.decisions.items():
            decisions.add_metric(labels, count)
        waits = GaugeMetricFamily("headrace_admission_wait_seconds", "Wait of a new request.", labels=["model"])
        for model, wait in self._admission.waits().items():
            waits.add_metric([model], wait)
        yield from (decisions, waits)

    def _of_models(self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str) -> Metric:
        family = kind(f"headrace_model_{name}", f"{name.replace('_', ' ')} of a model.", labels=["model"])
        for served in self._models.models():
            family.add_metric([served.id], getattr(served, name))
        return family
