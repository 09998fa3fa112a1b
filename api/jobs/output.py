"""A batch's output and error files, streamed from the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from api.embeddings import EMBEDDINGS
from api.errors import SERVER, internal_error
from api.store import BatchRecord, Store
from api.store.records import EndedItem
from schemas.messages import ErrorInfo, Result

log = logging.getLogger(__name__)

PAGE, EMBEDDINGS_PAGE = 100, 8
"""Lines in memory at once. One of embeddings may have 4 MiB of vectors, and writes them as 20 MB."""
PURPOSE = "batch_output"
RenderBody = Callable[[str, Result], dict[str, Any]]
"""Makes the endpoint's response body of a completed Result."""

_UNANSWERED = {
    "expired": ("batch_expired", "The batch expired before this request was done."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was done."),
}
_UNEXPLAINED = ErrorInfo(message="The request failed for an unknown reason.", type=SERVER, code="internal", status=500)


class OutputWriter:
    """Writes the files of one batch."""

    def __init__(self, store: Store, batch: BatchRecord, render: RenderBody) -> None:
        self._store = store
        self._batch = batch
        self._render = render

    async def write(self, *, completed: bool) -> str:
        """One file, of the lines that completed or of those that did not, in input order. It stays unseen until the
        batch ends. Returns its id."""
        name = "output" if completed else "error"
        return await self._store.files.write(
            self._lines(completed),
            owner=self._batch.owner,
            filename=f"{self._batch.id}_{name}.jsonl",
            purpose=PURPOSE,
            expires_after=self._batch.output_expires_after,
        )

    async def _lines(self, completed: bool) -> AsyncIterator[bytes]:
        last = 0
        while items := await self._page(completed, last):
            yield await asyncio.to_thread(self._rendered, items)
            last = items[-1].line

    async def _page(self, completed: bool, last: int) -> list[EndedItem]:
        limit = EMBEDDINGS_PAGE if self._batch.endpoint == EMBEDDINGS else PAGE
        return await self._store.items.ended(self._batch.id, completed=completed, after_line=last, limit=limit)

    def _rendered(self, items: list[EndedItem]) -> bytes:
        return b"".join(msgspec.json.encode(self._line(item)) + b"\n" for item in items)

    def _line(self, item: EndedItem) -> dict[str, Any]:
        response, error = self._answer(item.result)
        return {
            "id": f"batch_req_{item.result.job.removeprefix('batch_')}",
            "custom_id": item.custom_id,
            "response": response,
            "error": error,
        }

    def _answer(self, result: Result) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        """The line's response and error; one of them is None."""
        if result.outcome in _UNANSWERED:
            code, message = _UNANSWERED[result.outcome]
            return None, {"code": code, "message": message}
        if result.outcome == "failed":
            return _failure(result.job, result.error or _UNEXPLAINED), None
        try:
            body = self._render(self._batch.endpoint, result)
        except Exception:
            # One output that trips a fault of ours must not withhold all the others.
            log.exception("the output of batch line %s could not be rendered", result.job)
            return _failure(result.job, internal_error(result.job).info()), None
        return {"status_code": 200, "request_id": result.job, "body": body}, None


def _failure(job_id: str, error: ErrorInfo) -> dict[str, Any]:
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"status_code": error.status, "request_id": job_id, "body": {"error": body}}
