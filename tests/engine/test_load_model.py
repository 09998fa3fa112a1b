"""Which code runs a model is said, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.families import Row, reference
from tests.models.test_families import served
from workers.model.loaders.errors import ModelLoadError


def test_the_log_says_that_transformers_code_runs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = Row("bitnet", "bitnet")
    reference(row).save_pretrained(tmp_path)
    served(tmp_path, row)
    assert f"{tmp_path.name}: no family reads its architecture; it runs by transformers' own code" in [
        record.getMessage() for record in caplog.records
    ]


def test_what_neither_can_do_has_both_reasons(tmp_path: Path) -> None:
    row = Row("gptj", "gptj", dict(rotary_dim=64))
    reference(row).save_pretrained(tmp_path)
    with pytest.raises(
        ModelLoadError, match=r"attention interface \(and its family: the model's config rotates 64 of 16"
    ):
        served(tmp_path, row)
