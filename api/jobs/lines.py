"""The lines of a batch's input file: checked one by one, turned into items.

A fault in a line's envelope (JSON, custom_id, method, url) fails the whole batch; a fault in its body fails that line,
with the answer which the endpoint would have given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from api.errors import ApiError, internal_error
from api.store.records import BatchError, BatchRecord, NewItem
from schemas.messages import ErrorInfo, Job, encode

log = logging.getLogger(__name__)

MAX_CUSTOM_ID = 512
MAX_ERRORS = 100
"""Faults listed in a failed batch; the rest of its file is not looked at."""
_BOM = b"\xef\xbb\xbf"


class ParseBody(Protocol):
    """Makes a Job of a body sent to `endpoint`. Raises ApiError."""

    def __call__(self, endpoint: str, body: Any, *, job_id: str, owner: str) -> Job: ...


class LineFault(Exception):
    """What is wrong with a line's envelope."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class LineChecker:
    """Checks the lines of one batch in order. Knows the custom_ids seen so far."""

    def __init__(self, batch: BatchRecord, parse: ParseBody) -> None:
        self._batch = batch
        self._parse = parse
        self._seen: set[str] = set()
        self.errors: list[BatchError] = []
        self.total = 0

    @property
    def hopeless(self) -> bool:
        """Enough faults are listed."""
        return len(self.errors) >= MAX_ERRORS

    def check(self, lines: Sequence[tuple[int, bytes]]) -> list[NewItem]:
        """Items of `lines`, each a number from 1 and its text; faults go to `errors`. Does no I/O: fit for a thread."""
        checked = (self._check(number, text) for number, text in lines if text.strip() and not self.hopeless)
        return [item for item in checked if item is not None]

    def _check(self, number: int, text: bytes) -> NewItem | None:
        try:
            custom_id, body = self._envelope(text.removeprefix(_BOM) if number == 1 else text)
        except LineFault as fault:
            self.errors.append(BatchError(code=fault.code, message=fault.message, param=fault.param, line=number))
            return None
        self.total += 1
        return self._item(number, custom_id, body)

    def _envelope(self, text: bytes) -> tuple[str, Any]:
        """The line's custom_id and body. Raises LineFault."""
        line = _json_object(text)
        for name in ("custom_id", "method", "url", "body"):
            if name not in line:
                raise LineFault("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        custom_id = _custom_id(line["custom_id"])
        if custom_id in self._seen:
            raise LineFault("duplicate_custom_id", "This custom_id is already used by an earlier line.", "custom_id")
        if line["method"] != "POST":
            raise LineFault("invalid_method", "The method of a batch line is POST.", "method")
        if line["url"] != self._batch.endpoint:
            raise LineFault("invalid_url", f"The url is not the batch's endpoint, {self._batch.endpoint}.", "url")
        self._seen.add(custom_id)
        return custom_id, line["body"]

    def _item(self, number: int, custom_id: str, body: Any) -> NewItem:
        job_id = f"{self._batch.id}-{number}"
        named = body.get("model") if isinstance(body, dict) else None
        # Postgres has no NUL in text; a model so named exists nowhere, and only the ledger's copy is changed.
        model = named.replace("\0", "") if isinstance(named, str) else ""
        job = self._job(job_id, body)
        if isinstance(job, ErrorInfo):
            return NewItem(number, custom_id, job_id, model, rejected=job)
        return NewItem(number, custom_id, job_id, model, message=encode(job))

    def _job(self, job_id: str, body: Any) -> Job | ErrorInfo:
        try:
            job = self._parse(self._batch.endpoint, body, job_id=job_id, owner=self._batch.owner)
        except ApiError as error:
            return error.info()
        except Exception:
            # One line that trips a fault of ours must not hold up the other 49,999.
            log.exception("batch line %s could not be parsed", job_id)
            return internal_error(job_id).info()
        deadline = float(self._batch.expires_at)
        changes = {"job_class": "batch", "store_output": True, "stream": False, "reply_to": None, "deadline": deadline}
        return msgspec.structs.replace(job, **changes)


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineFault("invalid_json_line", f"This line is not a JSON object: {error}.") from None


def _custom_id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CUSTOM_ID or "\0" in value:
        message = f"The custom_id is a string of 1 to {MAX_CUSTOM_ID} characters."
        raise LineFault("invalid_custom_id", message, "custom_id")
    return value
