"""What ends a command before it runs."""

from __future__ import annotations


class StartError(Exception):
    """The command cannot start; the message says why and what to do, in one line."""
