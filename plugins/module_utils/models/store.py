# SPDX-License-Identifier: Apache-2.0
"""The model store of one node: what is there, is it what the plan wants, and placing what is missing.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.models.download import (
    CHUNK_BYTES,
    DownloadError,
    download,
    hash_stream,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text

# Room beyond the file itself, so that a store never fills its disk to the last block.
SPACE_MARGIN = 0.05


class StoreError(Exception):
    """A model file that can't be had. The text is one sentence without the host's name."""


def human_bytes(count: float) -> str:
    """Return bytes for people: ``98 MB``, ``1.2 GB`` (decimal units, as download pages show them)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} bytes"


def receipt_path(path: str) -> str:
    """Return where the receipt of the model file ``path`` is kept."""
    return path + ".receipt.json"


def write_receipt(path: str, sha256: str, receipt: Optional[str] = None) -> None:
    """Record that ``path``, as it is now, has ``sha256``."""
    status = os.stat(path)
    record = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    write_text(receipt or receipt_path(path), json.dumps(record, sort_keys=True) + "\n")


def recorded_sha256(path: str, receipt: Optional[str] = None) -> Optional[str]:
    """Return the SHA-256 that the receipt of ``path`` vouches for, or ``None`` when file and receipt disagree."""
    try:
        status = os.stat(path)
        with open(receipt or receipt_path(path), encoding="utf-8") as stream:
            record = json.load(stream)
        if record["size"] == status.st_size and record["mtime_ns"] == status.st_mtime_ns:
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def verified(
    path: str, sha256: str, size_bytes: Optional[int], receipt: Optional[str] = None, record: bool = True
) -> bool:
    """Return whether ``path`` is a file with ``sha256``; read it only when no receipt vouches for it.

    ``record`` false writes no receipt (check mode).
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or (size_bytes and status.st_size != size_bytes):
        return False
    known = recorded_sha256(path, receipt)
    if known is None:
        with open(path, "rb") as stream:
            known = hash_stream(stream).hexdigest()
        if record:
            # A store that can't take the receipt is still readable; the next call hashes again.
            with contextlib.suppress(OSError):
                write_receipt(path, known, receipt)
    return known == sha256


def check_models(models: Sequence[Mapping[str, Any]], root: str) -> None:
    """Raise :class:`StoreError` unless every wanted file has what is needed to get and verify it."""
    prefix = os.path.join(os.path.normpath(root), "")
    seen: Dict[str, str] = {}
    for model in models:
        path = str(model.get("path") or "")
        name = os.path.basename(path) or str(model.get("model") or "a model")
        if not os.path.normpath(path).startswith(prefix):
            raise StoreError(f"{name}: path '{path}' is not below the model store {root}; give an absolute path there")
        sha256 = str(model.get("sha256") or "")
        if len(sha256) != 64 or any(digit not in "0123456789abcdef" for digit in sha256):
            raise StoreError(
                f"{name}: sha256 '{sha256}' is no SHA-256; give the file's 64 lower-case hexadecimal digits"
            )
        if seen.setdefault(path, sha256) != sha256:
            raise StoreError(
                f"{name}: two models want {path} with different sha256; give one of them another file name"
            )
        size = model.get("size_bytes")
        if not isinstance(size, int) or size <= 0:
            raise StoreError(f"{name}: size_bytes is '{size}'; give the file's size in bytes")
        source = model.get("source")
        kinds = [kind for kind in ("url", "file", "package") if source.get(kind)] if isinstance(source, Mapping) else []
        if len(kinds) != 1:
            raise StoreError(f"{name}: source must have exactly one of url, file and package, it has {kinds or 'none'}")


def missing_models(models: Sequence[Mapping[str, Any]], record: bool = True) -> List[Mapping[str, Any]]:
    """Return the wanted files that are absent or not what their SHA-256 says."""
    return [
        model for model in models if not verified(model["path"], model["sha256"], model["size_bytes"], record=record)
    ]


def check_space(models: Sequence[Mapping[str, Any]], root: str, statvfs: Callable[[str], Any] = os.statvfs) -> None:
    """Raise :class:`StoreError` when the store's file system can't take ``models`` (all of them, plus 5 %).

    What an earlier, interrupted download has already written counts as written.
    """
    needed = 0
    for model in models:
        try:
            already = os.stat(model["path"] + ".partial").st_size
        except OSError:
            already = 0
        needed += max(0, math.ceil(model["size_bytes"] * (1 + SPACE_MARGIN)) - already)
    existing = root
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    status = statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        names = ", ".join(os.path.basename(model["path"]) for model in models)
        raise StoreError(
            f"{root} needs {human_bytes(needed)} for {names} and has {human_bytes(free)} free; free "
            f"{human_bytes(needed - free)} there or put inference_models_path on a larger disk"
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


def place(
    model: Mapping[str, Any],
    carried: Optional[str] = None,
    *,
    stall_timeout: float = 60.0,
    retries: int = 5,
    lock_timeout: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Bring one wanted file to its path: from ``carried`` (a file on this node) or from its source's URL.

    The bytes go to ``<path>.partial``, are verified there and moved into place in one step, owner the calling user,
    mode 0644. Returns false when another process placed the file meanwhile. Raises :class:`StoreError`; the file that
    was there before stays as it was.
    """
    path, sha256, size_bytes = str(model["path"]), str(model["sha256"]), int(model["size_bytes"])
    name = os.path.basename(path)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        with _locked_partial(path, lock_timeout, sleep) as out:
            if verified(path, sha256, size_bytes):
                os.unlink(path + ".partial")
                return False
            while True:
                earlier = not carried and out.seek(0, os.SEEK_END) > 0
                if carried:
                    _copy(carried, out)
                else:
                    download(
                        model["source"]["url"],
                        out,
                        size_bytes=size_bytes,
                        stall_timeout=stall_timeout,
                        retries=retries,
                        sleep=sleep,
                    )
                out.flush()
                out.seek(0)
                got = hash_stream(out).hexdigest()
                if got == sha256:
                    break
                if earlier:
                    # The part that lay here may be of another version of the file: once more from the beginning.
                    out.seek(0)
                    out.truncate()
                    continue
                os.unlink(path + ".partial")
                raise StoreError(
                    f"{name} has the SHA-256 {got} where {sha256} is expected, nothing was replaced; "
                    "correct the model's source or its sha256"
                )
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
            os.replace(path + ".partial", path)
            write_receipt(path, sha256)
            return True
    except DownloadError as error:
        raise StoreError(f"{name}: {error}") from error
    except OSError as error:
        raise StoreError(f"{name} can't be written to {path}: {error.strerror or error}; see to that disk") from error
