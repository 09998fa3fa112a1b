"""The `headrace` command as a child process: its output in a file, its end under the test's control."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.guard import Guard

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 120.0
STOP_TIMEOUT = 100.0
POLL = 0.05


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of Headrace, and with `variables`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HEADRACE_") and name not in ("AMQP_URL", "DATABASE_URL", "TRITON_INTERPRET")
    }
    # One thread: those of a parallel region wait for each other, for ever longer the busier the machine is.
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HEADRACE_THREADS": "1", "HEADRACE_DRAIN_SECONDS": "90"}
    return inherited | quiet | variables


def run(*arguments: str, stdin: str = "", timeout: float = 90.0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(**variables),
        check=False,
    )


class Running:
    """A command that runs until it is stopped. What it writes, on both streams, is kept in `log`."""

    def __init__(self, log: Path, *arguments: str, **variables: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(**variables),
            )
        self._guard: Guard | None = Guard()
        self._guard.watch(self.process.pid)

    def wait_for(self, pattern: str, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """The first line that matches; fails with the log where the process ends or the time is up before."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert not ended, f"ended with exit code {self.process.returncode}:\n{self.log.read_text()}"
            time.sleep(POLL)
        raise AssertionError(f"no line matches {pattern!r}:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT)
        self._dismiss_guard()
        return code

    def kill(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
