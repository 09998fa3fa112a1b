"""Five times what a service can serve, on the shipped commands around an engine at a fixed pace."""

from __future__ import annotations

import json

import pytest

from bench.main import main

pytestmark = pytest.mark.model


def test_overload(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-running", "8", "--step-ms", "10", "--output-tokens", "16", "--max-wait", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["overload", "--seconds", "2", "--capacity-seconds", "1", *flags])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["capacity_request_s"] == pytest.approx(50, rel=0.3)
    assert report["offered_request_s"] == pytest.approx(5 * report["capacity_request_s"], rel=0.01)
    assert (report["lost"], report["errors"]) == (0, {})
    assert report["refusals"] > 50
    assert report["accepted"] + report["turned_away"] == report["asked"] > 200
    # it has not been full for long enough to know its rate: how well promises hold is shown in tests/admission
    assert 0 < report["share_admitted_at_first_return"] <= 1
    assert report["admitted_at_first_return"] <= report["told_to_return"] <= report["refusals"]
    assert report["longest_retry_after_s"] <= 120
    memory = report["resident_mib"]
    assert set(memory) == {"start", "middle", "end", "over"}
    assert all(size > 10 for sizes in memory.values() for each in sizes.values() for size in each)
