# SPDX-License-Identifier: Apache-2.0
"""The model hub's stand-in on the loopback address, as each test wants it."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from images.model_hub.model_hub_stand_in import Content, ModelHub, Repository, send

COMMIT = "a" * 40
WEIGHTS = bytes(range(256)) * 2000
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "pytorch_model.bin": b"the same once more",
    "original/params.json": b"{}",
    "tokenizer/vocab file.txt": b"a\nb\n",
}


class HubStandIn(ModelHub):
    """A Hub with one repository, ``org/name``, and pages of two files."""

    def __init__(self, gated: bool = False, token: str | None = None) -> None:
        self.cuts: list[int] = []
        #: Headers of the answers 429 that come first.
        self.busy: list[dict[str, str]] = []
        self.on_file: Callable[[], None] | None = None
        #: Path and token.
        self.requests: list[tuple[str, str | None]] = []
        #: File and range.
        self.storage_requests: list[tuple[str, str | None]] = []
        #: What the storage sends in place of a file.
        self.wrong: dict[str, bytes] = {}
        files: dict[str, Content] = dict(FILES)
        self.repository = Repository(files, COMMIT, ("main", "pr/1"), gated, token, page=2)
        super().__init__({"org/name": self.repository}, former_names={"org/former-name": "org/name"})

    def seen(self, request: BaseHTTPRequestHandler, path: str, storage: bool) -> bool:
        """Write down a request; one that comes too early is told so."""
        if storage:
            assert "Authorization" not in request.headers, "the token went to the storage"
            self.storage_requests.append((path.removeprefix("/org/name/"), request.headers.get("Range")))
            if self.on_file:
                self.on_file()
            return False
        self.requests.append((path, request.headers.get("Authorization")))
        if self.busy:
            send(request, 429, **self.busy.pop(0))
            return True
        return False

    def cut(self, path: str) -> int | None:
        """Return after how many bytes this answer ends."""
        return self.cuts.pop(0) if self.cuts else None

    def stored(self, path: str) -> Content | None:
        """Return what the storage has at a path."""
        return self.wrong.get(path.removeprefix("/org/name/")) or super().stored(path)


class OllamaRegistryStandIn(ModelHub):
    """A registry with one model, ``library/tiny:1b``, of a configuration and two layers."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        super().__init__()
        self.layers = [b"{}", WEIGHTS, b"{{ .Prompt }}"]

    @property
    def layers(self) -> list[Content]:
        """The configuration and the layers."""
        return [content for _kind, content in self.library["library/tiny:1b"]]

    @layers.setter
    def layers(self, layers: list[Content]) -> None:
        self.library["library/tiny:1b"] = [("x", layer) for layer in layers]

    def seen(self, request: BaseHTTPRequestHandler, path: str, storage: bool) -> bool:
        """Write down a request."""
        if not storage:
            self.requests.append(path)
        return False


def repository(root: Path, **changes: Any) -> dict[str, Any]:
    """Return the plan's entry of the Hub's repository in a store."""
    return {
        "model": "name-8b",
        "quantization": "bf16",
        "path": str(root / "huggingface" / "models--org--name"),
        "size_bytes": 2 * len(WEIGHTS),
        "repository": "org/name",
        "revision": "main",
        "files": [],
        **changes,
    }


def library_model(root: Path, **changes: Any) -> dict[str, Any]:
    """Return the plan's entry of the registry's model in a store."""
    entry = {"model": "tiny-1b", "quantization": "Q4_0", "path": str(root / "ollama"), "size_bytes": len(WEIGHTS)}
    return {**entry, "ollama": "tiny:1b", **changes}
