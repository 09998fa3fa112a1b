"""A second message with the id of a job that is here: the same job again, or another one that must not take its id."""

from __future__ import annotations

import msgspec

from schemas.messages import ErrorInfo, Job


def is_same(one: Job, other: Job) -> bool:
    """Whether both ask for the same on behalf of the same owner. When it was made, who reads it, until when it is waited
    for and how urgent it is may differ: a batch line that has waited too long comes again as interactive."""
    return _request(one) == _request(other)


def id_taken() -> ErrorInfo:
    """Another job has this id."""
    message = "Another job has this id. Publish each job under an id of its own, and the same one only to repeat it."
    return ErrorInfo(message=message, param="id", code="job_id_reused", status=409)


def _request(job: Job) -> Job:
    return msgspec.structs.replace(job, created=0.0, reply_to=None, deadline=None, job_class="interactive")
