"""From a delivery's body to a Job, or to the refusal that its publisher gets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.base import Message
from schemas.messages import MAX_ID_LENGTH, ErrorInfo, Job, JobClass, Result, decode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A body that is no valid job. `job` is its id where one can be read, `reader` who waits for it."""

    reason: str
    job: str | None = None
    reader: str | None = None
    owner: str = ""
    job_class: JobClass = "interactive"

    def result(self, model: str, worker: str, epoch: int) -> Result:
        """The terminal message of a job that was never one. `job` is known."""
        assert self.job is not None
        now = time.time()
        return Result(
            job=self.job,
            model=model,
            outcome="failed",
            job_class=self.job_class,
            owner=self.owner,
            epoch=epoch,
            error=ErrorInfo(message=f"malformed job: {self.reason}", code="malformed_job"),
            created=now,
            started=now,
            finished=now,
            worker=worker,
        )


def read_job(message: Message) -> Job | Refusal:
    """The job in a request message; a refusal says what is wrong with it, by JSON path."""
    try:
        return decode(Job, message.body)
    except msgspec.MsgspecError as error:
        return _refusal(message, str(error))


def _refusal(message: Message, reason: str) -> Refusal:
    try:
        raw: Any = msgspec.json.decode(message.body)
    except msgspec.MsgspecError:
        return Refusal(reason)
    if not isinstance(raw, dict):
        return Refusal(reason)
    job, reader, owner = raw.get("id"), raw.get("reply_to") or message.reply_to, raw.get("owner")
    return Refusal(
        reason,
        job=job if isinstance(job, str) and 0 < len(job) <= MAX_ID_LENGTH else None,
        reader=reader if isinstance(reader, str) else None,
        owner=owner if isinstance(owner, str) else "",
        job_class="batch" if raw.get("job_class") == "batch" else "interactive",
    )
