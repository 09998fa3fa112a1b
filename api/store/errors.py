"""What the store raises."""

from __future__ import annotations


class StoreError(Exception):
    """The store could not do what was asked."""


class NotFound(StoreError):
    """No such object, or it belongs to somebody else, or it has expired."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"no such {kind}: {id}")
        self.kind = kind
        self.id = id


class FileTooLarge(StoreError):
    """An upload went past its limit in bytes; nothing of it was kept."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the file is larger than {limit} bytes")
        self.limit = limit


class LineTooLong(StoreError):
    """Line number `line` (from 1) is longer than `limit` bytes."""

    def __init__(self, line: int, limit: int) -> None:
        super().__init__(f"line {line} is longer than {limit} bytes")
        self.line = line
        self.limit = limit


class NotCancellable(StoreError):
    """The batch has ended, or is writing its output."""

    def __init__(self, id: str, status: str) -> None:
        super().__init__(f"batch {id} cannot be cancelled: it is {status}")
        self.id = id
        self.status = status


class LeaseLost(StoreError):
    """Another dispatcher works on this batch now, or it is gone."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the lease on batch {id} is lost")
        self.id = id


class StoreRejected(StoreError):
    """The database refuses these values and always will; trying again does not help."""


class StoreUnavailable(StoreError):
    """The database does not answer, is locked or gave up a transaction: the same call may succeed later."""
