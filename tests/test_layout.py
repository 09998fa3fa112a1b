"""What the top-level packages promise to those who share an environment with them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "triton")


def loaded_by(module: str) -> set[str]:
    """Top-level names of what a fresh interpreter holds after importing `module`."""
    code = f"import {module}, sys; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["kernels", "schemas.messages", "api.app", "broker.memory", "broker.amqp", "cli.main"]
)
def test_importing_loads_no_model_code(module: str) -> None:
    assert loaded_by(module).isdisjoint(HEAVY)


def test_kernels_is_ours() -> None:
    """HuggingFace has a package of this name, which transformers looks for."""
    found = find_spec("kernels")
    assert found is not None
    assert found.origin == str(ROOT / "kernels" / "__init__.py")
    assert set(packages_distributions().get("kernels", ["headrace"])) == {"headrace"}


def test_kernels_init_holds_a_docstring_only() -> None:
    assert re.fullmatch(r'"""[^"]*"""\s*', (ROOT / "kernels" / "__init__.py").read_text())


def test_transformers_does_not_take_our_kernels_for_its_own() -> None:
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
