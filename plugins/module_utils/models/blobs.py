# SPDX-License-Identifier: Apache-2.0
"""Files that are placed in the store by their checksum: verified, resumed, several at a time.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.models.download import (
    CATALOG_REMEDY,
    CHUNK_BYTES,
    DownloadError,
    Paused,
    download,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text

# Room beyond the files themselves, so that a store never fills its disk to the last block.
SPACE_MARGIN = 0.05
_GGUF_MAGIC = b"GGUF"


class StoreError(Exception):
    """A model that can't be had. The text is one sentence without the host's name."""


@dataclass(frozen=True)
class Blob:
    """A file of the store: where it lies, and what its bytes must be.

    ``kind`` is how ``checksum`` is computed: ``sha256``, or ``git`` for a small file of a repository (SHA-1 of its size
    and content, as git names a blob). ``title`` is the model's name for messages, ``name`` the file's. ``remedy`` says
    what to do when the bytes are others.
    """

    path: str
    size_bytes: int
    checksum: str
    url: Optional[str]
    title: str
    name: str
    kind: str = "sha256"
    token: Optional[str] = None
    remedy: str = CATALOG_REMEDY


@dataclass(frozen=True)
class Patience:
    """How long is waited, and for what: see ``download.download`` for ``stall_timeout`` (s) and ``retries``."""

    stall_timeout: float = 60.0
    retries: int = 5
    lock_timeout: float = 3600.0
    sleep: Callable[[float], None] = time.sleep


class Receipt(Protocol):
    """What remembers which files have their checksum."""

    def verified(self, blob: Blob) -> bool:
        """Return whether the file has its checksum; read it only when that is not known."""

    def add(self, blob: Blob) -> None:
        """Record that the file, as it is now, has its checksum."""


class Receipts:
    """Which files were found to have their checksum, by the size and time that they had then.

    They save reading a file again. One JSON file for many blobs, written in one step.
    """

    def __init__(self, path: str, record: bool = True) -> None:
        """``record`` false writes nothing (check mode)."""
        self._path = path
        self._record = record
        self._lock = threading.Lock()
        self.content: Dict[str, Any] = self._read()

    def vouches(self, blob: Blob) -> bool:
        """Return whether the file is what it was when it was verified."""
        known = self.content.get("blobs", {}).get(blob.checksum)
        try:
            status = os.stat(blob.path)
        except OSError:
            return False
        return bool(known == [status.st_size, status.st_mtime_ns] and status.st_size == blob.size_bytes)

    def verified(self, blob: Blob) -> bool:
        """Return whether the file has its checksum; read it only when no receipt vouches for it."""
        if self.vouches(blob):
            return True
        try:
            if os.path.getsize(blob.path) != blob.size_bytes:
                return False
            with open(blob.path, "rb") as stream:
                if checksum(stream, blob.size_bytes, blob.kind) != blob.checksum:
                    return False
        except OSError:
            return False
        self.add(blob)
        return True

    def add(self, blob: Blob) -> None:
        """Record that the file, as it is now, has its checksum."""
        status = os.stat(blob.path)
        self.keep("blobs", blob.checksum, [status.st_size, status.st_mtime_ns])

    def keep(self, section: str, key: str, value: Any) -> None:
        """Record ``value`` under a key of a section, such as what a revision consists of."""
        with self._changed():
            self.content.setdefault(section, {})[key] = value

    def forget(self, section: str, keys: Iterable[str]) -> None:
        """Remove keys of a section."""
        with self._changed():
            for key in keys:
                self.content.get(section, {}).pop(key, None)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        """Change the content beside other threads and processes, and write it."""
        with self._lock, contextlib.ExitStack() as stack:
            # A store that can't take the receipt is still readable; the next call reads the files again.
            if self._record:
                with contextlib.suppress(OSError):
                    os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
                    lock = stack.enter_context(open(self._path + ".lock", "a", encoding="utf-8"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    self.content = self._read()
            yield
            if self._record:
                with contextlib.suppress(OSError):
                    write_text(self._path, json.dumps(self.content, sort_keys=True) + "\n")

    def _read(self) -> Dict[str, Any]:
        try:
            with open(self._path, encoding="utf-8") as stream:
                found = json.load(stream)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def checksum(stream: BinaryIO, size_bytes: int, kind: str) -> str:
    """Return the checksum of what is left in ``stream``, which has ``size_bytes`` (see ``Blob.kind``)."""
    digest = hashlib.sha256()
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % size_bytes)  # noqa: S324 - the name that git gives a file
    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
        digest.update(chunk)
    return digest.hexdigest()


def human_bytes(count: float) -> str:
    """Return bytes for people: ``98 MB``, ``1.2 GB`` (decimal units, as download pages show them)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} bytes"


def arrived_bytes(blob: Blob) -> int:
    """Return how many bytes of a file an earlier, interrupted download has written."""
    try:
        return os.stat(blob.path + ".partial").st_size
    except OSError:
        return 0


def check_space(
    blobs: Sequence[Blob],
    root: str,
    statvfs: Callable[[str], Any] = os.statvfs,
    setting: str = "inference_models_path",
) -> None:
    """Raise :class:`StoreError` when the store's file system can't take ``blobs`` (all of them, plus 5 %).

    What an earlier, interrupted download has already written counts as written. ``setting`` names the variable that
    says where the store is.
    """
    needed = sum(
        max(0, math.ceil(blob.size_bytes * (1 + SPACE_MARGIN)) - arrived_bytes(blob))
        for blob in {blob.path: blob for blob in blobs}.values()
    )
    existing = root
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    status = statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        titles = ", ".join(dict.fromkeys(blob.title for blob in blobs))
        raise StoreError(
            f"{root} needs {human_bytes(needed)} for {titles} and has {human_bytes(free)} free; free "
            f"{human_bytes(needed - free)} there or put {setting} on a larger disk"
        )


@contextlib.contextmanager
def _locked_partial(path: str, timeout: float, sleep: Callable[[float], None]) -> Iterator[BinaryIO]:
    """Open ``<path>.partial`` with an exclusive lock, so that one process at a time writes this file."""
    partial = path + ".partial"
    deadline = time.monotonic() + timeout
    while True:
        stream = open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before us may have moved this very file to its final name.
            current = os.stat(partial)
            if os.path.samestat(current, os.fstat(stream.fileno())):
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                stream.close()
                raise
            if time.monotonic() >= deadline:
                stream.close()
                raise StoreError(
                    f"another process has been writing {partial} for {timeout:g} s; wait for it to end and run again"
                ) from error
            sleep(0.5)
        stream.close()
    with stream:
        yield stream


def _copy(source: str, out: BinaryIO) -> None:
    out.seek(0)
    out.truncate()
    with open(source, "rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            out.write(chunk)


def is_gguf(stream: BinaryIO) -> bool:
    """Return whether an open file begins as a GGUF file does."""
    stream.seek(0)
    return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC


def _fill(blob: Blob, out: BinaryIO, carried: Optional[str], patience: Patience, paused: Callable[[], bool]) -> None:
    """Write the blob's bytes to ``out`` and verify them."""
    while True:
        earlier = not carried and out.seek(0, os.SEEK_END) > 0
        if carried:
            _copy(carried, out)
        else:
            download(
                str(blob.url),
                out,
                size_bytes=blob.size_bytes,
                stall_timeout=patience.stall_timeout,
                retries=patience.retries,
                sleep=patience.sleep,
                token=blob.token,
                remedy=blob.remedy,
                paused=paused,
            )
        out.flush()
        size = out.seek(0, os.SEEK_END)
        out.seek(0)
        got = checksum(out, size, blob.kind)
        if got == blob.checksum:
            if blob.name.endswith(".gguf") and not is_gguf(out):
                raise StoreError(f"{blob.name} is no GGUF file, nothing was replaced; correct the model's source")
            return
        if not earlier:
            what = "SHA-256" if blob.kind == "sha256" else "git checksum"
            raise StoreError(
                f"{blob.name} has the {what} {got} where {blob.checksum} is expected, nothing was replaced; "
                f"{blob.remedy}"
            )
        # The part that lay here may be of another version of the file: once more from the beginning.
        out.seek(0)
        out.truncate()


def place(
    blob: Blob,
    receipt: Receipt,
    carried: Optional[str] = None,
    patience: Patience = Patience(),
    paused: Callable[[], bool] = lambda: False,
) -> bool:
    """Bring one file to its path: from ``carried`` (a file on this node), or from its URL.

    The bytes go to ``<path>.partial``, are verified there and moved into place in one step, owner the calling user,
    mode 0644. Returns false when another process placed the file meanwhile. Raises :class:`StoreError`, and
    ``download.Paused`` when ``paused()`` becomes true; the file that was there before stays as it was.
    """
    try:
        os.makedirs(os.path.dirname(blob.path), mode=0o755, exist_ok=True)
        with _locked_partial(blob.path, patience.lock_timeout, patience.sleep) as out:
            if receipt.verified(blob):
                os.unlink(blob.path + ".partial")
                return False
            try:
                _fill(blob, out, carried, patience, paused)
            except StoreError:
                os.unlink(blob.path + ".partial")
                raise
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
            os.replace(blob.path + ".partial", blob.path)
            receipt.add(blob)
            return True
    except DownloadError as error:
        raise StoreError(f"{blob.name}: {error}") from error
    except OSError as error:
        raise StoreError(
            f"{blob.name} can't be written to {blob.path}: {error.strerror or error}; see to that disk"
        ) from error


def place_all(
    blobs: Sequence[Tuple[Blob, Receipt]],
    *,
    parallel: int = 4,
    patience: Patience = Patience(),
    paused: Callable[[], bool] = lambda: False,
) -> List[str]:
    """Download files, ``parallel`` of them at a time, the largest first; return the paths of those that were placed.

    The first that fails ends the others where they are; ``paused()`` does the same without an error.
    Raises :class:`StoreError`.
    """
    failed = threading.Event()

    def bring(blob: Blob, receipt: Receipt) -> Optional[str]:
        try:
            if failed.is_set() or paused():
                return None
            done = place(blob, receipt, None, patience, lambda: failed.is_set() or paused())
            return blob.path if done else None
        except Paused:
            return None
        except BaseException:
            failed.set()
            raise

    ordered = sorted(blobs, key=lambda item: (-item[0].size_bytes, item[0].path))
    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        futures = [pool.submit(bring, *item) for item in ordered]
    return [path for path in (future.result() for future in futures) if path is not None]
