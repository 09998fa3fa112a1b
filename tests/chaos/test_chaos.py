"""A short run of `headrace bench chaos`: two hundred jobs through all doors, and everything killed once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.chaos_load import SPECS, Load, Record
from bench.chaos_report import Entry, is_sound, make_report, percentile
from bench.services import Postgres, RabbitMQ
from tests.cli.headrace import ROOT, environment
from tests.conftest import found

JOBS = 200
KILLS = 6


@pytest.mark.timeout(460)
def test_nothing_is_lost_and_nothing_counts_twice(tmp_path: Path) -> None:
    for kind in (RabbitMQ, Postgres):
        found(kind).remove()  # skips, or fails, where it is not installed
    flags = ["--jobs", str(JOBS), "--kill-every", "3", "--min-kills", str(KILLS), "--timeout", "240"]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "bench", "chaos", *flags, "--logs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=440,
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, f"{report}\n{done.stderr[-4000:]}"
    assert report["accepted"] == JOBS + SPECS
    assert report["completed"] == report["accepted"] - report["streams_cut_by_api"]
    assert report["streams_cut_by_api"] < JOBS // 4
    assert (report["lost"], report["duplicated"], report["failed"], report["wrong_answers"]) == (0, 0, 0, 0)
    assert report["usage_tokens"] == report["output_tokens"] > 0
    assert report["usage_rows"] == report["accepted"] + report["orphan_rows"]
    assert report["streams_whole"] == report["streams_interrupted"] > 0
    assert set(report["kills"]) >= {f"{part} SIGKILL" for part in ("worker", "api", "jobs", "broker", "postgres")}
    assert report["kills"]["worker SIGSTOP"] >= 1


def record(**fields: object) -> Record:
    made = Record(0, "stream", job="j", text="right", tokens=3, counted=3, answered=True)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, None),
        ({"job": "not in the ledger"}, "lost"),
        ({"answered": False}, "lost"),
        ({"answered": False, "error": "500"}, "failed"),
        ({"tokens": 4, "counted": 4}, "duplicated"),
        ({"text": "rigright"}, "wrong_answers"),
        ({"counted": 2}, "wrong_answers"),
        ({"job": "", "answered": False}, "never_accepted"),
    ],
)
async def test_the_report_sees_what_goes_wrong(fields: dict[str, object], named: str | None) -> None:
    load = Load([], "tiny", None)  # type: ignore[arg-type]
    load.references[0] = "right"
    load.records = [record(**fields)]
    report = make_report(load, {"j": Entry("completed", 0, 3)}, {})
    assert is_sound(report) == (named is None)
    wrong = {name for name in ("lost", "failed", "duplicated", "wrong_answers", "never_accepted") if report[name]}
    assert wrong == ({named} if named else set())
    await load.close()


async def test_a_stream_is_interrupted_where_its_worker_goes_between_its_first_and_its_last_token() -> None:
    load = Load([], "tiny", None)  # type: ignore[arg-type]
    load.references[0] = "right"
    times = [1.0, 2.0, 7.5, 8.0]
    load.records = [record(job="a", times=times), record(job="b", times=times), record(job="c", times=[9.0, 10.0])]
    ledger = {"a": Entry("completed", 1, 3), "b": Entry("completed", 0, 3), "c": Entry("completed", 1, 3)}
    report = make_report(load, ledger, {"worker SIGKILL": [3.0], "jobs SIGKILL": [9.5]})
    assert (report["streams_interrupted"], report["streams_whole"], report["gap_p99_s"]) == (1, 1, 5.5)
    await load.close()


def test_percentile() -> None:
    assert percentile([], 0.99) == 0.0
    assert percentile([float(number) for number in range(1000)], 0.99) == 990.0
