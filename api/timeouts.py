"""How long a caller is willing to wait, as it says in a header."""

from __future__ import annotations

import math

from starlette.requests import Request

from api.errors import ApiError

NAME = "X-Request-Timeout"


def wanted_timeout(request: Request, longest: float) -> float:
    """Seconds within which the request has to be answered: those of its X-Request-Timeout, but not more than `longest`.
    Raises ApiError 400."""
    given = request.headers.get(NAME)
    if given is None:
        return longest
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ApiError(400, f"The {NAME} is a positive number of seconds.", param=NAME, code="invalid_value")
    return min(seconds, longest)
