"""What ends a command, in one line."""

from __future__ import annotations


class StartError(Exception):
    """The command cannot start; the message says why and what to do."""


class PartEnded(Exception):
    """A part of a running command ended by itself."""

    def __init__(self, name: str, cause: BaseException | None) -> None:
        reason = f"{type(cause).__name__}: {cause}" if cause is not None else "it ended by itself"
        super().__init__(f"the {name} failed: {reason}")
