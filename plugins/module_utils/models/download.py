# SPDX-License-Identifier: Apache-2.0
"""Resumable HTTP download of one file (standard library only, Python 3.8+, runs on the nodes)."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import BinaryIO, Callable, Dict, Iterator

CHUNK_BYTES = 1024 * 1024
# Answers that a later attempt may turn into a file; every other 4xx/5xx is final.
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(Exception):
    """A download that failed for good. The text is a clause without the host's name."""


def shown_url(url: str) -> str:
    """Return ``url`` without what may be secret in it: user, password, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    netloc = parts.hostname or ""
    if parts.port:
        netloc = f"{netloc}:{parts.port}"
    return urllib.parse.urlunsplit((parts.scheme, netloc, parts.path, "", ""))


def hash_stream(stream: BinaryIO) -> "hashlib._Hash":
    """Return the SHA-256 object over everything that is left in ``stream``."""
    digest = hashlib.sha256()
    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
        digest.update(chunk)
    return digest


def _explain(error: Exception, stall_timeout: float) -> str:
    reason = getattr(error, "reason", None) or error
    if "timed out" in str(reason):
        return f"nothing arrived for {stall_timeout:g} s"
    return str(reason) or type(reason).__name__


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Make every failure of the network a ``URLError``, so that it isn't taken for one of the local disk.

    Before Python 3.10 a timeout is neither ``TimeoutError`` nor ``ConnectionError``.
    """
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _fetch_once(url: str, out: BinaryIO, size_bytes: int | None, stall_timeout: float) -> None:
    """Append what is missing to ``out``, or start again where the server can't continue."""
    offset = out.seek(0, os.SEEK_END)
    headers: Dict[str, str] = {"User-Agent": "inference-fleet", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme is checked by download()
    with _network():
        response = urllib.request.urlopen(request, timeout=stall_timeout)  # noqa: S310
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if not resumed:
            if response.status != 200:
                raise DownloadError(f"{shown_url(url)} answered {response.status}")
            offset = 0
            out.seek(0)
            out.truncate()
        length = response.headers.get("Content-Length")
        expected = offset + int(length) if length and length.isdigit() else None
        if size_bytes and expected is not None and expected != size_bytes:
            raise DownloadError(
                f"{shown_url(url)} offers {expected} bytes where the catalog says {size_bytes}; "
                "correct the model's url, or its size_bytes and sha256"
            )
        written = offset
        while True:
            # read1 returns what is there, so an interrupted transfer keeps everything that arrived.
            with _network():
                chunk = response.read1(CHUNK_BYTES)
            if not chunk:
                break
            out.write(chunk)
            written += len(chunk)
            if size_bytes and written > size_bytes:
                raise DownloadError(
                    f"{shown_url(url)} sends more than the {size_bytes} bytes of the catalog; "
                    "correct the model's url, or its size_bytes and sha256"
                )
        out.flush()
        wanted = expected if expected is not None else size_bytes
        if wanted is not None and written < wanted:
            raise http.client.IncompleteRead(b"", wanted - written)


def download(
    url: str,
    out: BinaryIO,
    *,
    size_bytes: int | None,
    stall_timeout: float = 60.0,
    retries: int = 5,
    pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download ``url`` into the open file ``out``, going on after the bytes that are already in it.

    ``size_bytes`` is the size the file must have (``None``: unknown). ``stall_timeout`` is the number of seconds
    without a byte after which an attempt is given up; ``retries`` is how many failed attempts *without progress* in a
    row are allowed; ``pause`` (s) doubles between them, up to 30 s. Raises :class:`DownloadError`; ``OSError`` of the
    local disk passes through.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{shown_url(url)} is no http or https address")
    failures = 0
    while True:
        before = out.seek(0, os.SEEK_END)
        if size_bytes and before >= size_bytes:
            return
        try:
            _fetch_once(url, out, size_bytes, stall_timeout)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:
                out.seek(0)
                out.truncate()
            elif error.code not in _TRANSIENT_STATUS:
                raise DownloadError(
                    f"{shown_url(url)} answered {error.code} {error.reason}; "
                    "check the model's url and whether this host may read it"
                ) from error
            problem = f"answered {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException) as error:
            problem = f"failed: {_explain(error, stall_timeout)}"
        out.flush()
        after = out.seek(0, os.SEEK_END)
        if after > before:
            failures = 0
        failures += 1
        if failures > retries:
            raise DownloadError(
                f"{shown_url(url)} {problem} after {failures} attempt{'s' if failures > 1 else ''} "
                f"({after} bytes are kept); check the network or proxy of this host and run again"
            )
        sleep(min(30.0, pause * 2 ** (failures - 1)))
