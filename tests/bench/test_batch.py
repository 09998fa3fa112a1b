"""A batch of thousands of lines through the shipped commands, in memory that does not grow with it."""

from __future__ import annotations

import json

import pytest

from bench.main import main

pytestmark = pytest.mark.model
LINES = 3000


@pytest.mark.timeout(300)
def test_thousands_of_lines_in_flat_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--lines", str(LINES), "--output-tokens", "4", "--prompt-bytes", "2000"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert report["answered_once"] == LINES
    assert report["input_mib"] > 5
    before, highest = (report["resident_mib"][when]["serve"] for when in ("before", "highest"))
    assert [0 <= high - low < 40 for low, high in zip(before, highest, strict=True)] == [True, True], report
