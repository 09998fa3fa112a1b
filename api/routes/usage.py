"""GET /v1/usage: what the caller has used, by day and model."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.auth import owner_of
from api.errors import ApiError
from api.routes.openapi import error_responses
from api.services import services
from api.store import DayUsage
from schemas.openai.usage_report import UsageReport, UsageRow

router = APIRouter(prefix="/v1/usage", tags=["usage"])

DEFAULT_DAYS = 30
MAX_DAYS = 366
DAY_SECONDS = 86_400


@router.get("", responses=error_responses(400, 503))
async def usage(
    request: Request,
    start: Annotated[date | None, Query(description="first day, UTC; without it 30 days in all")] = None,
    end: Annotated[date | None, Query(description="last day, included; without it today")] = None,
) -> UsageReport:
    """Requests and tokens of this API key by day and model, oldest day first. A request counts on the day on which it
    ended, once its result is recorded."""
    last = end or datetime.now(UTC).date()
    first = start or last - timedelta(days=min(DEFAULT_DAYS, last.toordinal()) - 1)
    if first > last or (last - first).days >= MAX_DAYS:
        message = f"Invalid 'start': give a day not after 'end', and at most {MAX_DAYS} days in all."
        raise ApiError(400, message, param="start", code="invalid_value")
    owner = owner_of(request)
    ledger = services(request).store.results
    rows = await ledger.daily_usage(owner, since=_midnight(first), until=_midnight(last) + DAY_SECONDS)
    return UsageReport(key=owner or None, data=[_row(row) for row in rows])


def _midnight(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _row(row: DayUsage) -> UsageRow:
    return UsageRow(
        day=datetime.fromtimestamp(row.day, UTC).date().isoformat(),
        model=row.model,
        requests=row.jobs,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        cached_tokens=row.cached_tokens,
    )
