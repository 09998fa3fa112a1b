"""What the store returns: plain frozen records, their fields named as in OpenAI's objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct

from schemas.messages import ErrorInfo, Result, Usage

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
EndStatus = Literal["completed", "expired", "cancelled"]
OPEN_STATUSES: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """An uploaded or generated file. Times are Unix seconds; `bytes` is its size."""

    id: str
    owner: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


class BatchError(Struct, frozen=True, kw_only=True):
    """Why a batch failed validation; `line` counts from 1, None when the fault is not a line's."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch with its counters. Times are Unix seconds, None until they come to pass. `failed` counts the lines that
    ended in any way but success."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    metadata: dict[str, str] | None
    errors: list[BatchError]
    output_expires_after: int | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    total: int
    completed: int
    failed: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `has_more` says that another begins after its last entry."""

    data: list[T]
    has_more: bool


@dataclass(frozen=True, slots=True)
class NewItem:
    """A validated line on its way in. `message` is the encoded Job; `rejected` says instead why the line is refused."""

    line: int
    custom_id: str
    job_id: str
    model: str
    message: bytes | None = None
    rejected: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class PendingItem:
    """A line to publish, or, where `rejected`, to record as failed. `message` is the encoded Job."""

    line: int
    job_id: str
    model: str
    message: bytes
    rejected: ErrorInfo | None


@dataclass(frozen=True, slots=True)
class UnfinishedItem:
    """A line without a result."""

    job_id: str
    model: str


@dataclass(frozen=True, slots=True)
class EndedItem:
    """A line with its result."""

    line: int
    custom_id: str
    result: Result


@dataclass(frozen=True, slots=True)
class DayUsage:
    """Sums over the jobs of one model that finished on one day; `day` is its midnight, UTC, in Unix seconds."""

    day: int
    model: str
    jobs: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """Sums over the finished jobs of one model."""

    model: str
    jobs: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key. `hash` is that of its secret, `hint` the secret's end. Times are Unix seconds."""

    id: str
    name: str
    hash: str
    hint: str
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """What a response was asked for. `request` holds the parameters as its object shows them, `input` its items; times
    are Unix seconds, `deadline` that of its job."""

    id: str
    owner: str
    job_id: str
    previous_id: str | None
    request: dict[str, Any]
    input: list[dict[str, Any]]
    created_at: float
    deadline: float
    cancelled_at: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An idempotency key and the request that holds it. `object_id` names what was made of it, `jobs` jobs."""

    owner: str
    key: str
    fingerprint: str
    object_id: str
    jobs: int
    created_at: float
    is_accepted: bool

    @property
    def job_ids(self) -> list[str]:
        """Ids of a completion's jobs."""
        return job_ids(self.object_id, self.jobs)


def job_ids(base: str, count: int) -> list[str]:
    """Ids of the `count` jobs of one request: `base` of one, `base`-0, `base`-1, ... of several."""
    return [base] if count == 1 else [f"{base}-{index}" for index in range(count)]
