"""Ends what this process has started when it is gone, however it went: a killed test run leaves nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

_WAIT = 5.0
_SCRIPT = """
while read -r line; do targets=$line; done
[ -z "$targets" ] || kill -s KILL -- $targets
[ -z "$1" ] || rm -rf -- "$1"
"""


class Guard:
    """A shell that reads from a pipe whose other end only this process holds. Once that is closed without a word it kills
    what it was told to watch, and removes `folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", _SCRIPT, "guard", str(folder or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends us by a signal to the whole group must not end it
        )

    def watch(self, *targets: int) -> None:
        """Process ids, or process groups as negative numbers; these take the place of those named before."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(" ".join(map(str, targets)).encode() + b"\n")
        self._shell.stdin.flush()

    def dismiss(self) -> None:
        """What was watched is ended and removed by whoever started it."""
        self._shell.kill()
        self._shell.wait(_WAIT)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
