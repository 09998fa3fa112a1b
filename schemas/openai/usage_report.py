"""/v1/usage: tokens by day and model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class UsageRow(BaseModel):
    """What ended on one day (UTC, YYYY-MM-DD) with one model."""

    object: Literal["usage"] = "usage"
    day: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class UsageReport(BaseModel):
    """`key` is the API key that the usage belongs to, null where none was needed."""

    object: Literal["list"] = "list"
    key: str | None
    data: list[UsageRow]
