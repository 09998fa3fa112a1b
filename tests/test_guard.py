"""Nothing that a test run started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.guard import Guard
from bench.services import Postgres, is_stopped
from tests.conftest import found

STARTS_POSTGRES = """
import time
from bench.services import Postgres, is_stopped
service = Postgres()
service.start()
print(service._server.pid, service._folder, flush=True)
time.sleep(60)
"""


def until_gone(pid: int) -> None:
    limit = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_service_ends_with_the_process_that_started_it() -> None:
    found(Postgres).remove()  # skips, or fails, where it is not installed
    starter = subprocess.Popen([sys.executable, "-c", STARTS_POSTGRES], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid, folder = starter.stdout.readline().split()
    starter.kill()
    starter.wait()
    starter.stdout.close()
    until_gone(int(pid))
    limit = time.monotonic() + 20
    while Path(folder).exists():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_what_was_watched_last_is_killed(tmp_path: Path) -> None:
    children = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
    guard = Guard(tmp_path / "kept")
    guard.watch(children[0].pid)
    guard.watch(-children[1].pid)
    assert guard._shell.stdin is not None
    guard._shell.stdin.close()  # as the end of this process would
    assert children[1].wait(20) == -signal.SIGKILL
    assert children[0].poll() is None
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].wait()
    guard._shell.wait(20)


def test_a_dismissed_guard_kills_nobody(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    folder = tmp_path / "kept"
    folder.mkdir()
    guard = Guard(folder)
    guard.watch(child.pid)
    guard.dismiss()
    assert child.poll() is None
    assert folder.exists()
    child.kill()
    child.wait()


def test_a_group_is_stopped_when_all_of_it_is() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    assert not is_stopped(child.pid)
    os.killpg(child.pid, signal.SIGSTOP)
    limit = time.monotonic() + 20
    while not is_stopped(child.pid):
        assert time.monotonic() < limit
    os.kill(child.pid, signal.SIGCONT)
    while is_stopped(child.pid):
        assert time.monotonic() < limit
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
