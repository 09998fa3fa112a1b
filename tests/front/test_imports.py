"""The front starts in a moment and shares its process with no model."""

from __future__ import annotations

import subprocess
import sys


def test_the_front_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, workers.front.worker; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
