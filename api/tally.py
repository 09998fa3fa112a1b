"""How many jobs of each model this process waits for, and how long their answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.messages import Job, Result

MEMORY = 50
"""Finished jobs over which the mean output reaches back."""


class Tally:
    """Counts of one queue client."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self._means: dict[str, float] = {}
        self._seen: Counter[str] = Counter()

    def begin(self, jobs: Sequence[Job]) -> None:
        self.running.update(job.model for job in jobs)

    def end(self, jobs: Sequence[Job]) -> None:
        self.running.subtract(job.model for job in jobs)

    def finished(self, result: Result) -> None:
        """Take a Result's token count into its model's mean: of its output, or where it has none (embeddings) of its
        input, which is what such a model's rate counts."""
        if result.outcome != "completed":
            return
        self._seen[result.model] += 1
        before = self._means.get(result.model, 0.0)
        tokens = result.usage.completion_tokens or result.usage.prompt_tokens
        weight = 1 / min(self._seen[result.model], MEMORY)
        self._means[result.model] = before + weight * (tokens - before)

    def mean_output(self, model: str, unknown: float) -> float:
        """Output tokens of a job, on average; `unknown` before any has finished. At least one."""
        return max(1.0, self._means.get(model, unknown))
