"""docs/delivery.md names a test for each promise: they all exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
NAME = re.compile(r"`([a-z_0-9/]+\.py)(?:::([a-z_0-9]+))?`")
PAGES = ("delivery.md", "admission.md")


def named(page: str) -> set[tuple[str, str]]:
    """Files below tests/ and functions in them."""
    names = NAME.findall((DOCS / page).read_text())
    return {(path, function) for path, function in names if Path(path).name.startswith("test_")}


def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_names_exists(page: str) -> None:
    missing = {
        f"{path}::{function}"
        for path, function in named(page)
        if not (TESTS / path).is_file() or (function and function not in functions(TESTS / path))
    }
    assert missing == set()


def test_each_promise_has_a_test() -> None:
    table = (DOCS / "delivery.md").read_text().split("## The promises")[1].split("## Who dies")[0]
    rows = [row for row in table.splitlines() if row.startswith("| **")]
    assert len(rows) >= 12
    assert all(NAME.search(row) for row in rows)
