# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hugging Face Hub, of the Ollama registry and of a plain web server with files, at one address.

It answers as the real ones do to what the model store asks: paths, headers, error codes, pages, redirections of large
files to another server, ranges. The unit tests have it on the loopback address, local nodes in a container.

Usage: model_hub_stand_in.py DESCRIPTION.json

The description names what there is, all of it as files::

    {"repositories": {"org/name": {"folder": "/srv/0", "commit": "aa…", "gated": true, "token": "hf_…"}},
     "library": {"library/name:tag": [["application/vnd.docker.container.image.v1+json", "/srv/1"], …]},
     "downloads": {"/files/model.gguf": "/srv/2"}}

Beside them tests may ask for:

- ``GET /requests``: what was asked for so far, in its order; ``DELETE /requests`` begins anew.
- ``PUT /cuts`` with ``{"/files/model.gguf": 1000}``: the next answer with that path ends after so many bytes. Large
  files of repositories and of the library have the path that they are redirected to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shutil
import sys
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

#: A file: its bytes, or where it lies.
Content = bytes | Path
PORT, STORAGE_PORT = 80, 8080
#: What the Hub keeps in its large file storage: what .gitattributes of its repositories names, and what is large.
_LARGE_NAMES = (".bin", ".gguf", ".pt", ".pth", ".safetensors")
_LARGE_BYTES = 10_000_000


def size(content: Content) -> int:
    """Return how many bytes a file has."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@functools.lru_cache(maxsize=1000)
def _digest(content: Content, kind: str) -> str:
    found = hashlib.new(kind)
    if kind == "sha1":
        found.update(b"blob %d\0" % size(content))
    if isinstance(content, bytes):
        found.update(content)
    else:
        with content.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()


def checksum(content: Content) -> str:
    """Return a file's SHA-256."""
    return _digest(content, "sha256")


def git_checksum(content: Content) -> str:
    """Return what git names a file."""
    return _digest(content, "sha1")


@dataclass
class Repository:
    """A repository of the Hub at its one commit.

    Attributes:
        files: Name → file.
        commit: What every revision stands for.
        revisions: Branches and tags.
        gated: Whether only who has the token may read its files.
        token: The one that may.
        page: Files on each page of its list.
    """

    files: dict[str, Content]
    commit: str
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None
    page: int = 1000


class Server:
    """An HTTP server; ``answer`` answers its requests, each in a thread of its own."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None], host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    answer(self)

            do_HEAD = do_PUT = do_DELETE = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answer with a few bytes; a name of a header has underscores in place of hyphens."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _send_file(request: BaseHTTPRequestHandler, content: Content, cut: int | None, **headers: str) -> None:
    """Answer with a file or its rest; ``cut`` ends the answer after so many bytes."""
    total, wanted = size(content), re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
    start = int(wanted[1]) if wanted else 0
    if wanted and start >= total:
        return send(request, 416, Content_Range=f"bytes */{total}")
    request.send_response(206 if wanted else 200)
    if wanted:
        request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(total - start), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command == "HEAD":
        return None
    if isinstance(content, bytes):
        request.wfile.write(content[start : None if cut is None else start + cut])
    else:
        with content.open("rb") as stream:
            stream.seek(start)
            _copy(stream, request.wfile, cut)
    return None


def _copy(stream: BinaryIO, out: Any, cut: int | None) -> None:
    if cut is None:
        shutil.copyfileobj(stream, out, 1 << 20)
    else:
        out.write(stream.read(cut))


@dataclass
class ModelHub:
    """The stand-in: one server for what is asked, and a second one for what is in large storage.

    Attributes:
        repositories: ``org/name`` → repository.
        library: ``library/name:tag`` → configuration and layers, each with its media type.
        downloads: Path → file that the first server has.
        former_names: Former name of a repository → the name that it has now.
        host: Address to listen at.
        port: Port of the first server, 0 for any.
        storage_port: Port of the second one.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    library: dict[str, list[tuple[str, Content]]] = field(default_factory=dict)
    downloads: dict[str, Content] = field(default_factory=dict)
    former_names: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    storage_port: int = 0

    def __post_init__(self) -> None:
        self._cuts: dict[str, int] = {}
        self._seen: list[dict[str, Any]] = []
        self._storage = Server(self._get_storage, self.host, self.storage_port)
        self._hub = Server(self._get, self.host, self.port)
        self.url = f"http://127.0.0.1:{self._hub.port}"

    def close(self) -> None:
        """Answer no more."""
        self._hub.close()
        self._storage.close()

    def seen(self, request: BaseHTTPRequestHandler, path: str, storage: bool) -> bool:
        """Write down a request; true when that was an answer, too."""
        self._seen.append(
            {
                "method": request.command,
                "client": request.client_address[0],
                "path": path,
                "storage": storage,
                "authorization": "Authorization" in request.headers,
                "range": request.headers.get("Range"),
            }
        )
        return False

    def cut(self, path: str) -> int | None:
        """Return after how many bytes this answer ends; None for all of them."""
        return self._cuts.pop(path, None)

    def stored(self, path: str) -> Content | None:
        """Return what the storage has at a path."""
        for name, repository in self.repositories.items():
            if path.startswith(f"/{name}/"):
                return repository.files.get(path.removeprefix(f"/{name}/"))
        return self._layers().get(path)

    def _layers(self) -> dict[str, Content]:
        """Path → layer of all models of the library."""
        return {
            f"/v2/{name.partition(':')[0]}/blobs/sha256:{checksum(content)}": content
            for name, layers in self.library.items()
            for _kind, content in layers
        }

    def manifest(self, name: str) -> bytes:
        """Return the manifest of a model of the library."""
        entries = [
            {"mediaType": kind, "digest": f"sha256:{checksum(content)}", "size": size(content)}
            for kind, content in self.library[name]
        ]
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        content = {"schemaVersion": 2, "mediaType": kind, "config": entries[0], "layers": entries[1:]}
        return json.dumps(content).encode()

    def _redirect(self, request: BaseHTTPRequestHandler, status: int, path: str, **headers: str) -> None:
        """Send the client to the storage, with a signature that allows it to read there."""
        host = (request.headers.get("Host") or "127.0.0.1").partition(":")[0]
        target = f"http://{host}:{self._storage.port}{urllib.parse.quote(path)}?Signature=stand-in"
        send(request, status, Location=target, **headers)

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        parts = urllib.parse.urlsplit(request.path)
        path = parts.path
        if path in ("/requests", "/cuts"):
            return self._control(request, path)
        if self.seen(request, path, storage=False):
            return None
        if path in self.downloads:
            return _send_file(request, self.downloads[path], self.cut(path))
        if path.startswith("/v2/") and self.library:
            return self._get_library(request, path)
        query = urllib.parse.parse_qs(parts.query)
        kind, _slash, rest = path[1:].partition("/models/") if path.startswith("/api/models/") else ("", "", path[1:])
        organization, name, what = (*rest.split("/", 2), "", "")[:3]
        name = f"{organization}/{name}"
        if name in self.former_names:
            return send(request, 307, Location=request.path.replace(name, self.former_names[name]))
        repository = self.repositories.get(name)
        sent = request.headers.get("Authorization")
        # Everybody may list what a gated repository has.
        closed = what.startswith("resolve/") or (kind == "api" and what == "auth-check")
        if repository and repository.gated and closed and sent != f"Bearer {repository.token}":
            return send(request, 401 if sent is None else 403, X_Error_Code="GatedRepo")
        if repository is None:
            # Nobody is told whether a private one has that name.
            return send(request, 401, X_Error_Code="RepoNotFound")
        if kind == "api":
            return self._get_api(request, name, repository, what, query)
        return self._get_file(request, name, repository, what)

    def _get_api(
        self, request: BaseHTTPRequestHandler, name: str, repository: Repository, what: str, query: dict[str, list[str]]
    ) -> None:
        kind, _slash, revision = what.partition("/")
        revision = urllib.parse.unquote(revision)
        if kind in ("revision", "tree") and revision not in (*repository.revisions, repository.commit):
            return send(request, 404, X_Error_Code="RevisionNotFound")
        if kind == "revision":
            found = {"id": name, "sha": repository.commit, "private": False}
            found["gated"] = "manual" if repository.gated else False
            return send(request, 200, json.dumps(found).encode(), Content_Type="application/json")
        if kind == "auth-check":
            return send(request, 200, b"OK")
        if kind == "tree" and query.get("recursive") == ["true"]:
            return self._get_tree(request, name, repository, query)
        return send(request, 404)

    def _get_tree(
        self, request: BaseHTTPRequestHandler, name: str, repository: Repository, query: dict[str, list[str]]
    ) -> None:
        start = int(query.get("cursor", ["0"])[0])
        folders = sorted({file.rpartition("/")[0] for file in repository.files} - {""})
        entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        entries += [_entry(file, content) for file, content in repository.files.items()]
        end, link = start + repository.page, {}
        if end < len(entries):
            host = request.headers.get("Host")
            target = f"http://{host}/api/models/{name}/tree/{repository.commit}?recursive=true&cursor={end}"
            link = {"Link": f'<{target}>; rel="next"'}
        body = json.dumps(entries[start:end]).encode()
        return send(request, 200, body, Content_Type="application/json", **link)

    def _get_file(self, request: BaseHTTPRequestHandler, name: str, repository: Repository, what: str) -> None:
        found = re.fullmatch(r"resolve/([^/]+)/(.+)", what)
        if not found:
            return send(request, 404, X_Error_Code="EntryNotFound")
        revision, file = urllib.parse.unquote(found[1]), urllib.parse.unquote(found[2])
        if revision not in (*repository.revisions, repository.commit):
            return send(request, 404, X_Error_Code="RevisionNotFound")
        if file not in repository.files:
            return send(request, 404, X_Error_Code="EntryNotFound")
        content, headers = repository.files[file], {"X_Repo_Commit": repository.commit}
        if _is_large(file, content):
            headers |= {"X_Linked_Size": str(size(content)), "X_Linked_Etag": f'"{checksum(content)}"'}
            return self._redirect(request, 302, f"/{name}/{file}", **headers)
        return _send_file(request, content, self.cut(request.path), ETag=f'"{git_checksum(content)}"', **headers)

    def _get_library(self, request: BaseHTTPRequestHandler, path: str) -> None:
        manifest = re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/([^/]+)", path)
        if manifest and (name := f"{manifest[1]}:{manifest[2]}") in self.library:
            kind = "application/vnd.docker.distribution.manifest.v2+json"
            return send(request, 200, self.manifest(name), Content_Type=kind)
        if path in self._layers():
            return self._redirect(request, 307, path)
        code = "MANIFEST_UNKNOWN" if manifest else "BLOB_UNKNOWN"
        return send(request, 404, json.dumps({"errors": [{"code": code}]}).encode(), Content_Type="application/json")

    def _get_storage(self, request: BaseHTTPRequestHandler) -> None:
        parts = urllib.parse.urlsplit(request.path)
        path = urllib.parse.unquote(parts.path)
        self.seen(request, path, storage=True)
        if "Authorization" in request.headers:
            return send(request, 400, b"Only one auth mechanism allowed")
        content = self.stored(path)
        if "Signature=" not in parts.query or content is None:
            return send(request, 403)
        return _send_file(request, content, self.cut(path))

    def _control(self, request: BaseHTTPRequestHandler, path: str) -> None:
        """Answer what only tests ask for."""
        if request.command == "PUT" and path == "/cuts":
            self._cuts.update(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
            return send(request, 204)
        if request.command == "DELETE" and path == "/requests":
            self._seen.clear()
            return send(request, 204)
        found: Any = self._seen if path == "/requests" else self._cuts
        return send(request, 200, json.dumps(found).encode(), Content_Type="application/json")


def _is_large(name: str, content: Content) -> bool:
    return name.endswith(_LARGE_NAMES) or size(content) > _LARGE_BYTES


def _entry(name: str, content: Content) -> dict[str, Any]:
    """Return a file's line in a repository's list."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": size(content)}
    if not _is_large(name, content):
        return {**entry, "oid": git_checksum(content)}
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{checksum(content)}\nsize {size(content)}\n"
    ).encode()
    lfs = {"oid": checksum(content), "size": size(content), "pointerSize": len(pointer)}
    return {**entry, "oid": git_checksum(pointer), "lfs": lfs}


def _described(description: dict[str, Any]) -> ModelHub:
    """Return the stand-in with what a description names."""
    repositories = {}
    for name, wanted in description["repositories"].items():
        folder = Path(wanted["folder"])
        files: dict[str, Content] = {
            str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()
        }
        repositories[name] = Repository(files, wanted["commit"], gated=wanted["gated"], token=wanted["token"])
    library: dict[str, list[tuple[str, Content]]] = {
        name: [(kind, Path(file)) for kind, file in layers] for name, layers in description["library"].items()
    }
    downloads: dict[str, Content] = {path: Path(file) for path, file in description["downloads"].items()}
    # Known before somebody waits for it.
    for content in [each for repository in repositories.values() for each in repository.files.values()]:
        checksum(content)
    return ModelHub(repositories, library, downloads, host="", port=PORT, storage_port=STORAGE_PORT)


if __name__ == "__main__":
    _described(json.loads(Path(sys.argv[1]).read_text()))
    threading.Event().wait()
