"""One job while a worker has it, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.messages import Choice, ErrorInfo, Job, Outcome, PositionLogprobs, Result, SamplingParams, Usage
from workers.front.choice import ChoiceRun
from workers.front.text import Prompt
from workers.front.vector import VectorRun


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended. With `bury` a copy of it goes to the dead-letter queue."""

    outcome: Outcome
    error: ErrorInfo | None = None
    bury: bool = False


def failed(message: str, *, bury: bool = False) -> Ending:
    """A failure that is not the caller's."""
    return Ending("failed", ErrorInfo(message=message, type="server_error", status=500), bury)


def expired() -> Ending:
    error = ErrorInfo(message="the job's deadline has passed", type="server_error", code="request_timeout", status=408)
    return Ending("expired", error)


@dataclass(eq=False, slots=True)
class JobRun:
    """A job from its delivery to its Result.

    `epoch` is the delivery's count; it grows with a redelivery to the worker that has it. `serial` numbers the runs of
    this worker's engine. `streaming` says whether deltas go to the reader, `shown` which tokens it had before this run.
    `ended` resolves with the ending, or None where the job is left to another worker; `settled` with whether its Result
    is confirmed.
    """

    job: Job
    reader: str | None
    epoch: int
    streaming: bool
    ended: asyncio.Future[Ending | None]
    settled: asyncio.Future[bool]
    serial: int = 0
    started: float = field(default_factory=time.time)
    prompt: Prompt | None = None
    shown: list[list[int]] = field(default_factory=list)
    choices: list[ChoiceRun] = field(default_factory=list)
    vectors: list[VectorRun] = field(default_factory=list)

    @classmethod
    def begin(cls, job: Job, reader: str | None, epoch: int) -> JobRun:
        loop = asyncio.get_running_loop()
        streaming = job.stream and reader is not None
        return cls(job, reader, epoch, streaming, loop.create_future(), loop.create_future())

    @property
    def reserved_tokens(self) -> int:
        """Prompt tokens and all output tokens that may come; of inputs those whose vectors are still to come."""
        if self.prompt is None:
            return sum(len(vector.token_ids) for vector in self.vectors if vector.vector is None)
        return len(self.prompt.token_ids) + self.job.sampling.num_outputs * self.prompt.max_tokens

    def request_id(self, choice: int) -> str:
        """Of the engine's request; differs between runs of one job: a late output never reaches the wrong one."""
        return f"{self.job.id}/{choice}/{self.serial}"

    def request_sampling(self, choice: int) -> SamplingParams:
        """Parameters of one engine request. Text is not the engine's affair, so stop strings and words are left out."""
        assert self.prompt is not None
        sampling = self.job.sampling
        seed = stable_seed(self.job.id) if sampling.seed is None else sampling.seed
        return msgspec.structs.replace(
            sampling,
            n=1,
            best_of=None,
            seed=wrap_int64(seed + choice),
            stop=[],
            bad_words=[],
            bad_token_ids=self.prompt.bad_token_ids,
            grammar=self.prompt.grammar or sampling.grammar,
            max_tokens=self.prompt.max_tokens,
            logprobs=(sampling.logprobs or 0) if sampling.num_outputs > sampling.n else sampling.logprobs,
            prompt_logprobs=sampling.logprobs if self._scores_echo else sampling.prompt_logprobs,
        )

    @property
    def _scores_echo(self) -> bool:
        """Whether what is echoed needs more log probabilities than are asked for of the prompt itself."""
        sampling = self.job.sampling
        assert self.prompt is not None
        if not self.prompt.echo or sampling.logprobs is None:
            return False
        return sampling.logprobs > (-1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs)

    def usage(self) -> Usage:
        """The prompt counts once. What was cached for every choice was cached for the job."""
        if self.prompt is None:
            read = sum(len(vector.token_ids) for vector in self.vectors)
            return Usage(prompt_tokens=read, cached_tokens=sum(vector.cached_tokens for vector in self.vectors))
        cached = [choice.cached_tokens for choice in self.choices if choice.cached_tokens is not None]
        count = len(self.prompt.token_ids)
        return Usage(
            prompt_tokens=count,
            completion_tokens=sum(len(choice.tokens) for choice in self.choices),
            cached_tokens=min([*cached, count]) if cached else 0,
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self.choices),
        )

    def result(self, ending: Ending, model: str, worker: str) -> Result:
        """The terminal message, with all outputs if the job completed."""
        job = self.job
        return Result(
            job=job.id,
            model=model,
            outcome=ending.outcome,
            job_class=job.job_class,
            owner=job.owner,
            epoch=self.epoch,
            usage=self.usage(),
            choices=self._outputs() if ending.outcome == "completed" else [],
            error=ending.error,
            created=job.created,
            started=self.started,
            finished=time.time(),
            worker=worker,
        )

    def _outputs(self) -> list[Choice]:
        """All vectors, or all finished choices, or of more than were asked for the best."""
        sampling = self.job.sampling
        if self.vectors:
            return [vector.finished() for vector in self.vectors]
        if len(self.choices) <= sampling.n:
            return [choice.finished() for choice in self.choices]
        best_first = sorted(self.choices, key=lambda choice: mean_logprob(choice.logprobs), reverse=True)
        made = [choice.finished() for choice in best_first]
        changes: dict[str, Any] = {} if sampling.logprobs is not None else {"logprobs": None}
        return [msgspec.structs.replace(best, index=index, **changes) for index, best in enumerate(made[: sampling.n])]


def mean_logprob(positions: list[PositionLogprobs]) -> float:
    """Of the sampled tokens."""
    values = [position.sampled.logprob or 0.0 for position in positions]
    return sum(values) / len(values) if values else float("-inf")


def stable_seed(job_id: str) -> int:
    """A seed for a job without one, the same on every worker and at every delivery."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), signed=True)


def wrap_int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
