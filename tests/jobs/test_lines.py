"""What is wrong with a batch's input, and how that is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.jobs.lines import MAX_CUSTOM_ID, MAX_ERRORS, LineChecker
from api.requests import job_from_body
from api.store import BatchRecord
from schemas.messages import Job, Usage, decode
from tests.jobs.stub import ENDPOINT, MODEL, line


def batch() -> BatchRecord:
    times = dict.fromkeys(("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"))
    rest = dict.fromkeys(("cancelling_at", "cancelled_at", "metadata", "output_expires_after"))
    return BatchRecord(
        id="batch_1",
        owner="me",
        endpoint=ENDPOINT,
        input_file_id="file-1",
        completion_window="24h",
        status="validating",
        errors=[],
        output_file_id=None,
        error_file_id=None,
        created_at=1_800_000_000,
        expires_at=1_800_086_400,
        total=0,
        completed=0,
        failed=0,
        usage=Usage(),
        **times,
        **rest,  # type: ignore[arg-type]
    )


@pytest.fixture
def checker() -> LineChecker:
    return LineChecker(batch(), job_from_body)


def encoded(*lines: Any) -> list[tuple[int, bytes]]:
    texts = [text if isinstance(text, bytes) else json.dumps(text).encode() for text in lines]
    return list(enumerate(texts, start=1))


def test_a_good_line_becomes_a_batch_job(checker: LineChecker) -> None:
    (item,) = checker.check(encoded(line("a", "héllo")))
    assert (item.line, item.custom_id, item.job_id, item.model, item.rejected) == (1, "a", "batch_1-1", MODEL, None)
    assert item.message is not None
    job = decode(Job, item.message)
    assert (job.id, job.prompt, job.owner, job.job_class) == ("batch_1-1", "héllo", "me", "batch")
    assert (job.store_output, job.stream, job.reply_to, job.deadline) == (True, False, None, 1_800_086_400.0)
    assert checker.errors == []


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in line("a").items() if key != name}


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b'{"custom_id": "a"', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (line(7), "invalid_custom_id", "custom_id"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("x" * (MAX_CUSTOM_ID + 1)), "invalid_custom_id", "custom_id"),
        (line("a\0"), "invalid_custom_id", "custom_id"),
        (line("a", method="GET"), "invalid_method", "method"),
        (line("a", url="/v1/chat/completions"), "invalid_url", "url"),
        (line("first"), "duplicate_custom_id", "custom_id"),
    ],
)
def test_a_faulty_envelope_is_the_batchs_fault(checker: LineChecker, bad: Any, code: str, param: str | None) -> None:
    items = checker.check(encoded(line("first"), bad, line("last")))
    assert [item.custom_id for item in items] == ["first", "last"]
    (error,) = checker.errors
    assert (error.code, error.param, error.line) == (code, param, 2)
    assert error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "prompt"),
        ({"model": MODEL, "prompt": "x", "temperature": 9}, "temperature"),
        ({"prompt": "x"}, "model"),
        ({"model": MODEL, "prompt": "x", "stream": True}, "stream"),
        ([], None),
        (None, None),
    ],
)
def test_a_faulty_body_is_the_lines_fault(checker: LineChecker, body: Any, param: str | None) -> None:
    (item,) = checker.check(encoded(line("a", body=body)))
    assert checker.errors == []
    assert item.message is None
    assert item.rejected is not None
    assert (item.rejected.status, item.rejected.param) == (400, param)


def test_blank_lines_and_a_byte_order_mark_are_passed_over(checker: LineChecker) -> None:
    marked = b"\xef\xbb\xbf" + json.dumps(line("a")).encode()
    items = checker.check(encoded(marked, b"", b"  ", line("b")))
    assert [(item.line, item.custom_id) for item in items] == [(1, "a"), (4, "b")]
    assert checker.errors == []


def test_checking_stops_after_enough_faults(checker: LineChecker) -> None:
    checker.check(encoded(*[b"{"] * (MAX_ERRORS + 50)))
    assert len(checker.errors) == MAX_ERRORS
    assert checker.hopeless


def test_a_parser_that_breaks_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def parse(endpoint: str, body: Any, *, job_id: str, owner: str) -> Job:
        if body["prompt"] == "bug":
            raise ZeroDivisionError
        return job_from_body(endpoint, body, job_id=job_id, owner=owner)

    bad, good = LineChecker(batch(), parse).check(encoded(line("a", "bug"), line("b")))
    assert bad.rejected is not None
    assert bad.rejected.status == 500
    assert good.rejected is None
    assert "ZeroDivisionError" in caplog.text


def test_a_model_with_nul_is_kept_out_of_the_ledger(checker: LineChecker) -> None:
    (item,) = checker.check(encoded(line("a", body={"model": "ti\0ny", "prompt": "x"})))
    assert item.model == "tiny"
