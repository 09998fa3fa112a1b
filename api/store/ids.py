"""Names of stored objects: random, and sorted as they were made."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """`prefix` and 32 hexadecimal digits, the first half the time in nanoseconds: lists page by id alone."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"
