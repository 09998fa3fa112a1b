"""Postgres or SQLite behind one interface: files, batches, results and usage, every object scoped by its owner.

    store = Store("sqlite:///headrace.db")            or postgresql://user:secret@host/db
    await store.open() ... await store.close()        the schema itself: api.store.migrate.upgrade(url)
    await store.ping()                                raises StoreUnavailable

    store.files      create(chunks, owner=, filename=, purpose=, limit=, expires_after=None) -> FileRecord
                     get(owner, id) -> FileRecord         delete(owner, id)
                     list(owner, purpose=None, limit=20, order="desc", after=None) -> Page[FileRecord]
                     content(owner, id) -> async iterator of chunks
                     lines(owner, id, max_bytes=) -> async iterator of lines
    store.batches    create(owner, input_file_id=, endpoint=, metadata=None, ...) -> BatchRecord
                     get(owner, id) -> BatchRecord        cancel(owner, id) -> BatchRecord
                     list(owner, limit=20, after=None) -> Page[BatchRecord]
                     and what the dispatcher needs: claim, renew, release, begin, finalize, fail, finish
    store.items      the lines of a batch: add, pending, in_flight, mark_dispatched, requeue, unfinished, ended
    store.results    record(result) -> bool               record_many(results) -> list[bool]
                     get(owner, job_id) -> Result         usage(owner, since=0, until=None) -> list[UsageTotal]
                     daily_usage(owner, since=, until=) -> list[DayUsage]
    store.keys       get(owner, key) -> KeyRecord | None    claim(owner, key, fingerprint, object_id) -> KeyRecord, mine
                     accept(record)    release(record)      purge()
    store.responses  create(record)     get(owner, id) and cancel(owner, id) -> ResponseRecord, Result | None
                     chain(owner, id) -> list of these    delete(owner, id) -> ResponseRecord      purge()
    store.api_keys   create(name) -> ApiKey, secret       list() -> list[ApiKey]      revoke(id) -> ApiKey

Errors, all of them StoreError: NotFound (no such object of this owner, or expired), FileTooLarge, LineTooLong,
NotCancellable, LeaseLost, StoreRejected (the database refuses the values), StoreUnavailable (it does not answer: try
again). Times are Unix seconds, whole where OpenAI's objects carry them.
"""

from api.store.errors import (
    FileTooLarge,
    LeaseLost,
    LineTooLong,
    NotCancellable,
    NotFound,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from api.store.records import (
    ApiKey,
    BatchError,
    BatchRecord,
    DayUsage,
    FileRecord,
    KeyRecord,
    Page,
    ResponseRecord,
    UsageTotal,
)
from api.store.store import Store

__all__ = [
    "ApiKey",
    "BatchError",
    "BatchRecord",
    "DayUsage",
    "FileRecord",
    "FileTooLarge",
    "KeyRecord",
    "LeaseLost",
    "LineTooLong",
    "NotCancellable",
    "NotFound",
    "Page",
    "ResponseRecord",
    "Store",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "UsageTotal",
]
