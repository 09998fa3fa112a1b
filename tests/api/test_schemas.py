"""The checked-in JSON Schemas are those of the messages, and say what decoding says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas.export import FOLDER, main, outdated, write
from schemas.messages import (
    Choice,
    Control,
    Delta,
    EmbeddingParams,
    Frame,
    Job,
    Result,
    ResumeQuery,
    SamplingParams,
    Status,
    decode,
    encode,
)


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


VECTOR = Choice(index=0, text="", token_ids=[], finish_reason="stop", embedding=b"\0\0\x80?")
MESSAGES = [
    Job(id="j", model="m", prompt="x", sampling=SamplingParams(n=2, stop=["a"], logit_bias={5: 1.0})),
    Job(id="j", model="m", messages=[{"role": "user", "content": "x"}], stream=True, reply_to="q"),
    Job(id="j", model="m", inputs=["x", [1, 2]], embedding=EmbeddingParams(dimensions=3, normalize=False)),
    Frame(worker="w", deltas=[Delta(job="j", epoch=0, offset=0, text="a", token_ids=[1])]),
    Frame(worker="w", queries=[ResumeQuery(job="j", epoch=1)]),
    Result(job="j", model="m", outcome="completed"),
    Result(job="j", model="m", outcome="completed", choices=[VECTOR]),
    Control(kind="resume", job="j", epoch=1, shown=[[1, 2]]),
    Status(worker="w", model="m", max_model_len=8, vocab_size=9),
    Status(worker="w", model="m", max_model_len=8, vocab_size=9, embedding_dimensions=3),
]


def schema_of(kind: str) -> Any:
    return json.loads((FOLDER / f"{kind}.json").read_text())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_match_their_schema(message: Any) -> None:
    jsonschema.validate(json.loads(encode(message)), schema_of(type(message).__name__.lower()))


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m"},
        {"id": "", "model": "m"},
        {"id": "j", "model": "m", "sampling": {"temperature": 3}},
        {"id": "j", "model": "m", "inputs": []},
        {"id": "j", "model": "m", "inputs": ["a", ""]},
        {"id": "j", "model": "m", "inputs": ["a"], "embedding": {"dimensions": 0}},
    ],
)
def test_schemas_refuse_what_decoding_refuses(body: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema_of("job"))
    with pytest.raises(msgspec.ValidationError):
        decode(Job, json.dumps(body).encode())


@pytest.mark.parametrize("fields", [{"prompt": "b"}, {"stream": True}])
def test_inputs_come_alone_and_whole(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(Job, json.dumps({"id": "j", "model": "m", "inputs": ["a"], **fields}).encode())
