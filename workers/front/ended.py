"""Jobs that ended here lately, for readers that missed the end."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from schemas.messages import Result
from workers.front.job_run import JobRun

KEPT_SECONDS = 120.0
KEPT_TOKENS = 400_000
"""Prompt and output tokens in all: about 20 MB."""
TOKEN_BYTES = 50
"""What one of those takes."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job whose Result is confirmed, as its reader was told."""

    run: JobRun
    result: Result
    tokens: int
    at: float


class EndedJobs:
    """Bounded in tokens and in age; the oldest go first."""

    def __init__(self, kept_tokens: int = KEPT_TOKENS) -> None:
        self._kept_tokens = kept_tokens
        self._jobs: OrderedDict[str, Ended] = OrderedDict()
        self._tokens = 0

    def add(self, run: JobRun, result: Result) -> None:
        self._drop(run.job.id)
        for choice in run.choices:
            choice.compact()
        vectors = sum(len(choice.embedding or b"") for choice in result.choices)
        tokens = result.usage.prompt_tokens + result.usage.completion_tokens + vectors // TOKEN_BYTES
        self._jobs[run.job.id] = Ended(run, result, tokens, time.monotonic())
        self._tokens += tokens
        self._trim()

    def get(self, job: str) -> Ended | None:
        return self._jobs.get(job)

    def _trim(self) -> None:
        oldest = time.monotonic() - KEPT_SECONDS
        while self._jobs:
            job, ended = next(iter(self._jobs.items()))
            if self._tokens <= self._kept_tokens and ended.at >= oldest:
                return
            self._drop(job)

    def _drop(self, job: str) -> None:
        if (ended := self._jobs.pop(job, None)) is not None:
            self._tokens -= ended.tokens
