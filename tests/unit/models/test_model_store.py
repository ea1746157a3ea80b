# SPDX-License-Identifier: Apache-2.0
"""The model store against a real HTTP server on the loopback address."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models import blobs, store
from ansible_collections.fleet.inference.plugins.module_utils.models.download import DownloadError, download, shown_url
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources

CONTENT = b"GGUF" + bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT; ``cut`` ends the first answers after that many bytes, ``ranges`` off ignores Range."""

    def __init__(self) -> None:
        self.requests: list[str | None] = []
        self.content = CONTENT
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.stall: threading.Event | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.requests.append(wanted)
                if outer.statuses:
                    self.send_error(outer.statuses.pop(0))
                    return
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                # A client may have seen enough and gone.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body[: outer.cuts.pop(0)] if outer.cuts else body)
                    self.wfile.flush()
                if outer.stall:
                    outer.stall.wait(10)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/model.gguf"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self.stall:
            self.stall.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def model(server: Server, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "store" / "model.gguf"
    return {"path": str(path), "size_bytes": len(CONTENT), "sha256": SHA256, "source": {"url": server.url}}


def blob_of(model: dict[str, Any]) -> blobs.Blob:
    """Return the file that an entry of the plan's models stands for."""
    return store.item(model, "/").blobs(None, Sources())[0]


def place(model: dict[str, Any], carried: str | None = None, **options: Any) -> bool:
    patience = blobs.Patience(**{"sleep": lambda seconds: None, **options})
    return blobs.place(blob_of(model), store.FileReceipt(), carried, patience)


def is_placed(model: dict[str, Any], record: bool = True) -> bool:
    return store.item(model, "/", record).is_placed()


def test_download_and_receipt(server: Server, model: dict[str, Any]) -> None:
    path = Path(model["path"])
    assert not is_placed(model)
    assert place(model) is True
    assert path.read_bytes() == CONTENT and path.stat().st_mode & 0o777 == 0o644
    assert json.loads(Path(store.receipt_path(model["path"])).read_text())["sha256"] == SHA256
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.gguf", "model.gguf.receipt.json"]
    assert is_placed(model)


def test_receipt_saves_the_hashing(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    place(model)
    monkeypatch.setattr(store, "hash_stream", lambda stream: pytest.fail("the file was read again"))
    assert is_placed(model)


def test_changed_file_is_read_again(model: dict[str, Any]) -> None:
    place(model)
    path = Path(model["path"])
    os.utime(path, (1, 1))
    assert is_placed(model, record=False)
    assert store.recorded_sha256(model["path"]) is None
    assert is_placed(model) and store.recorded_sha256(model["path"]) == SHA256
    path.write_bytes(b"x" * len(CONTENT))
    assert not is_placed(model)
    assert place(model) is True and path.read_bytes() == CONTENT


def test_resume_after_a_cut(server: Server, model: dict[str, Any]) -> None:
    server.cuts = [300_000, 200_000]
    assert place(model) is True
    assert server.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_resume_of_an_earlier_partial(server: Server, model: dict[str, Any]) -> None:
    partial = Path(model["path"] + ".partial")
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:1000])
    assert place(model) is True and server.requests == ["bytes=1000-"]


def test_complete_partial_needs_no_server(server: Server, model: dict[str, Any]) -> None:
    partial = Path(model["path"] + ".partial")
    partial.parent.mkdir()
    partial.write_bytes(CONTENT)
    assert place(model) is True and server.requests == []


def test_partial_of_another_file_is_thrown_away(server: Server, model: dict[str, Any]) -> None:
    partial = Path(model["path"] + ".partial")
    partial.parent.mkdir()
    partial.write_bytes(b"z" * 1000)
    assert place(model) is True and server.requests == ["bytes=1000-", None]


def test_server_without_ranges(server: Server, model: dict[str, Any]) -> None:
    server.ranges = False
    server.cuts = [400_000]
    assert place(model) is True and Path(model["path"]).read_bytes() == CONTENT


def test_wrong_checksum_keeps_the_old_file(server: Server, model: dict[str, Any]) -> None:
    path = Path(model["path"])
    path.parent.mkdir()
    path.write_bytes(b"old")
    wanted = {**model, "sha256": "0" * 64}
    with pytest.raises(blobs.StoreError) as error:
        place(wanted)
    assert SHA256 in str(error.value) and "0" * 64 in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == b"old" and not Path(model["path"] + ".partial").exists()


def test_not_found_is_final(server: Server, model: dict[str, Any]) -> None:
    server.statuses = [404, 404]
    with pytest.raises(blobs.StoreError, match=r"model\.gguf: http://127.* answered 404 Not Found"):
        place(model)
    assert len(server.requests) == 1


def test_busy_server_is_asked_again(server: Server, model: dict[str, Any]) -> None:
    server.statuses = [503, 429]
    assert place(model) is True and len(server.requests) == 3


def test_gives_up_without_progress_and_keeps_the_partial(server: Server, model: dict[str, Any]) -> None:
    server.cuts = [1000]
    server.statuses = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        server.statuses = [500]

    with pytest.raises(blobs.StoreError, match=r"after 3 attempts \(1000 bytes are kept\)"):
        place(model, retries=2, sleep=sleep)
    assert pauses == [2.0, 4.0] and Path(model["path"] + ".partial").stat().st_size == 1000


def test_stall(server: Server, model: dict[str, Any]) -> None:
    server.stall = threading.Event()
    server.cuts = [500, 500]
    with pytest.raises(blobs.StoreError, match=r"nothing arrived for 0.2 s"):
        place(model, stall_timeout=0.2, retries=0)


def test_refused_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with (tmp_path / "out").open("w+b") as out, pytest.raises(DownloadError, match="Connection refused"):
        download("http://127.0.0.1:1/x", out, size_bytes=1, retries=0)


def test_other_size_is_known_before_the_bytes(server: Server, model: dict[str, Any]) -> None:
    with pytest.raises(blobs.StoreError, match=f"offers {len(CONTENT)} bytes where 5 are expected"):
        place({**model, "size_bytes": 5})


def test_other_scheme(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out, pytest.raises(DownloadError, match="no http or https"):
        download("file:///etc/passwd", out, size_bytes=None)


def test_carried_file(server: Server, model: dict[str, Any], tmp_path: Path) -> None:
    carried = tmp_path / "carried"
    carried.write_bytes(CONTENT)
    assert place(model, str(carried)) is True and carried.exists() and server.requests == []


def test_full_disk_before_anything_is_written(model: dict[str, Any], tmp_path: Path) -> None:
    asked: list[str] = []

    def statvfs(path: str) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_bavail=1, f_frsize=4096)

    root = tmp_path / "store" / "models"
    with pytest.raises(blobs.StoreError) as error:
        blobs.check_space([blob_of(model)], str(root), statvfs)
    assert asked == [str(tmp_path)] and not root.exists()
    assert str(error.value) == (
        f"{root} needs 1.1 MB for model.gguf and has 4.1 kB free; free 1.1 MB there or put inference_models_path on a "
        "larger disk"
    )


def test_space_counts_the_partial(model: dict[str, Any]) -> None:
    partial = Path(model["path"] + ".partial")
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:-4096])
    margin = int(len(CONTENT) * blobs.SPACE_MARGIN) + 4096 + 1
    blobs.check_space([blob_of(model)], str(partial.parent), lambda path: SimpleNamespace(f_bavail=margin, f_frsize=1))
    with pytest.raises(blobs.StoreError):
        blobs.check_space(
            [blob_of(model)], str(partial.parent), lambda path: SimpleNamespace(f_bavail=margin - 10, f_frsize=1)
        )


def test_full_disk_while_writing(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs, "download", full)
    with pytest.raises(blobs.StoreError, match="No space left on device; see to that disk"):
        place(model)


def test_one_writer_at_a_time(server: Server, model: dict[str, Any]) -> None:
    partial = Path(model["path"] + ".partial")
    partial.parent.mkdir()
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(blobs.StoreError, match="another process has been writing"):
            place(model, lock_timeout=0)

        def finish(seconds: float) -> None:
            """The other process ends: its file is complete and in place."""
            if not other.closed:
                other.write(CONTENT)
                other.flush()
                partial.rename(model["path"])
                other.close()

        assert place(model, sleep=finish) is False
    assert server.requests == [] and not partial.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "/etc/passwd"}, "not below the model store"),
        ({"path": "/store/../etc/x.gguf"}, "not below the model store"),
        ({"sha256": "abc"}, "is no SHA-256"),
        ({"size_bytes": 0}, "size_bytes is '0'"),
        ({"source": {"url": "http://x", "file": "/x"}}, "exactly one of url, file and package"),
        ({"source": {}}, "it has none"),
    ],
)
def test_bad_models(change: dict[str, Any], words: str) -> None:
    good = {"path": "/store/x.gguf", "size_bytes": 5, "sha256": SHA256, "source": {"file": "/x"}}
    store.check_models([good], "/store/")
    with pytest.raises(blobs.StoreError, match=words):
        store.check_models([{**good, **change}], "/store")


def test_two_files_of_one_name() -> None:
    good = {"path": "/store/x.gguf", "size_bytes": 5, "sha256": SHA256, "source": {"file": "/x"}}
    with pytest.raises(blobs.StoreError, match="two models want"):
        store.check_models([good, {**good, "sha256": "0" * 64}], "/store")


def test_shown_url_has_no_secret() -> None:
    assert shown_url("https://me:pass@models.example:8443/a/b.gguf?token=t#x") == "https://models.example:8443/a/b.gguf"


@pytest.mark.parametrize(
    ("count", "text"), [(98362432, "98 MB"), (1.25e9, "1.2 GB"), (999, "999 bytes"), (4096, "4.1 kB"), (4e13, "40 TB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert blobs.human_bytes(count) == text
