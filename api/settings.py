"""Settings of the HTTP tier, made once at the composition root."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Times in seconds, sizes in bytes.

    `hold_seconds` is how long a stream's status line waits for the first token, so that an early failure can still be a
    plain HTTP error; after it the stream opens and keep-alive comments follow, since proxies drop silent connections.
    `keys_required` refuses requests without an API key even while there are no keys at all.
    `max_wait` is the wait in its queue beyond which a new request is refused.
    `max_buffered_tokens` is how far a reader may fall behind its job before the job is cancelled.
    """

    request_timeout: float = 1800.0
    max_wait: float = 30.0
    keys_required: bool = False
    hold_seconds: float = 15.0
    keep_alive_seconds: float = 10.0
    worker_expiry: float = 10.0
    crash_grace: float = 600.0
    discovery_seconds: float = 2.0
    probe_timeout: float = 2.0
    max_body_bytes: int = 32 * MIB
    max_file_bytes: int = 200 * MIB
    max_buffered_tokens: int = 16_384
