# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of the Hugging Face Hub and of the Ollama registry on the loopback address.

They answer as the real ones do to the requests that the model store sends: paths, headers, error codes, pages,
redirections of large files to another server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


class _Server:
    """An HTTP server on the loopback address; ``get`` answers its requests."""

    def __init__(self, get: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    get(self)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _answer_file(request: BaseHTTPRequestHandler, content: bytes, cut: int | None = None) -> None:
    wanted = request.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    request.send_response(206 if wanted else 200)
    if wanted:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    request.wfile.write(content[start:] if cut is None else content[start : start + cut])


def git_checksum(content: bytes) -> str:
    """Return what git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubStandIn:
    """One repository, ``org/name``: a Hub with pages of two files, and a second server for what is in large storage."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    gated: bool = False
    token: str | None = None
    cuts: list[int] = field(default_factory=list)
    #: Headers of the answers 429 that come first.
    busy: list[dict[str, str]] = field(default_factory=list)
    on_file: Callable[[], None] | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    storage_requests: list[tuple[str, str | None]] = field(default_factory=list)
    #: What the storage sends in place of a file.
    wrong: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hub = _Server(self._get)
        self._storage = _Server(self._get_storage)
        self.url = self._hub.url

    def close(self) -> None:
        self._hub.close()
        self._storage.close()

    def _large(self, name: str) -> bool:
        return len(self.files[name]) > 1000

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.urlsplit(request.path)
        sent = request.headers.get("Authorization")
        self.requests.append((path.path, sent))
        if self.busy:
            return _answer(request, 429, **self.busy.pop(0))
        if path.path.startswith("/api/models/org/former-name/"):
            # The Hub redirects to a repository's new name.
            return _answer(request, 307, Location=request.path.replace("/former-name/", "/name/"))
        # Everybody may list what a gated repository has.
        closed = "/resolve/" in path.path or path.path.endswith("/auth-check")
        if self.gated and closed and sent != f"Bearer {self.token}":
            return _answer(request, 401 if sent is None else 403, X_Error_Code="GatedRepo")
        if not path.path.startswith(("/api/models/org/name/", "/org/name/")):
            return _answer(request, 401, X_Error_Code="RepoNotFound")
        rest = path.path.removeprefix("/api/models/org/name/")
        if rest.startswith("revision/"):
            if rest not in ("revision/main", "revision/pr%2F1", f"revision/{COMMIT}"):
                return _answer(request, 404, X_Error_Code="RevisionNotFound")
            found = {"id": "org/name", "sha": COMMIT, "gated": "manual" if self.gated else False}
            return _answer(request, 200, json.dumps(found).encode())
        if rest == "auth-check":
            return _answer(request, 200, b"OK")
        if rest == f"tree/{COMMIT}":
            return self._get_tree(request, urllib.parse.parse_qs(path.query))
        name = urllib.parse.unquote(path.path.removeprefix(f"/org/name/resolve/{COMMIT}/"))
        if name not in self.files:
            return _answer(request, 404, X_Error_Code="EntryNotFound")
        if self._large(name):
            return _answer(request, 302, Location=f"{self._storage.url}/{urllib.parse.quote(name)}?Signature=x")
        return _answer_file(request, self.files[name])

    def _get_tree(self, request: BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        assert query["recursive"] == ["true"]
        start = int(query.get("cursor", ["0"])[0])
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "original", "oid": "0" * 40, "size": 0}]
        for name, content in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_checksum(content)}
            if self._large(name):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                entry["oid"] = "b" * 40
            entries.append(entry)
        link = {}
        if start + 2 < len(entries):
            target = f"{self.url}/api/models/org/name/tree/{COMMIT}?recursive=true&cursor={start + 2}"
            link = {"Link": f'<{target}>; rel="next"'}
        _answer(request, 200, json.dumps(entries[start : start + 2]).encode(), **link)

    def _get_storage(self, request: BaseHTTPRequestHandler) -> None:
        name = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path[1:])
        self.storage_requests.append((name, request.headers.get("Range")))
        assert request.headers.get("Authorization") is None, "the token went to the storage"
        if self.on_file:
            self.on_file()
        _answer_file(request, self.wrong.get(name, self.files[name]), self.cuts.pop(0) if self.cuts else None)


@dataclass
class OllamaRegistryStandIn:
    """One model, ``library/tiny:1b``, of a configuration and two layers."""

    layers: list[bytes] = field(default_factory=lambda: [b"{}", WEIGHTS, b"{{ .Prompt }}"])
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _Server(self._get)
        self.url = self._server.url
        self.close = self._server.close

    @property
    def manifest(self) -> bytes:
        entries = [
            {"mediaType": "x", "digest": f"sha256:{hashlib.sha256(layer).hexdigest()}", "size": len(layer)}
            for layer in self.layers
        ]
        return json.dumps({"schemaVersion": 2, "config": entries[0], "layers": entries[1:]}).encode()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        if request.path == "/v2/library/tiny/manifests/1b":
            return _answer(request, 200, self.manifest)
        blobs = {f"/v2/library/tiny/blobs/sha256:{hashlib.sha256(layer).hexdigest()}": layer for layer in self.layers}
        if request.path in blobs:
            return _answer_file(request, blobs[request.path])
        return _answer(request, 404)


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
