"""The checked-in JSON Schemas are those of the messages, and say what decoding says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.export import FOLDER, main, outdated, write
from schemas.messages import Control, Delta, Frame, Job, Result, ResumeQuery, SamplingParams, Status, encode


def test_checked_in_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert outdated() == []
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_changed_a_missing_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "frame.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    assert outdated(tmp_path) == ["frame.json", "job.json", "old.json"]


MESSAGES = [
    Job(id="j", model="m", prompt="x", sampling=SamplingParams(n=2, stop=["a"], logit_bias={5: 1.0})),
    Job(id="j", model="m", messages=[{"role": "user", "content": "x"}], stream=True, reply_to="q"),
    Frame(worker="w", deltas=[Delta(job="j", epoch=0, offset=0, text="a", token_ids=[1])]),
    Frame(worker="w", queries=[ResumeQuery(job="j", epoch=1)]),
    Result(job="j", model="m", outcome="completed"),
    Control(kind="resume", job="j", epoch=1, shown=[[1, 2]]),
    Status(worker="w", model="m", max_model_len=8, vocab_size=9),
]


def schema_of(kind: str) -> Any:
    return json.loads((FOLDER / f"{kind}.json").read_text())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_match_their_schema(message: Any) -> None:
    jsonschema.validate(json.loads(encode(message)), schema_of(type(message).__name__.lower()))


@pytest.mark.parametrize(
    "body", [{"model": "m"}, {"id": "", "model": "m"}, {"id": "j", "model": "m", "sampling": {"temperature": 3}}]
)
def test_schemas_refuse_what_decoding_refuses(body: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema_of("job"))
