# SPDX-License-Identifier: Apache-2.0
"""Resumable HTTP download of one file (standard library only, Python 3.8+, runs on the nodes)."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO, Callable, Dict, Iterator, Optional, Tuple

CHUNK_BYTES = 1024 * 1024
# The longest that a server may ask for: the Hub counts requests in windows of five minutes.
_LONGEST_PAUSE = 300.0
# Seconds until requests are counted anew (draft-ietf-httpapi-ratelimit-headers, as Hugging Face sends it).
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
_MOST_BYTES = 64 * CHUNK_BYTES
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
# Answers that a later attempt may turn into a file; every other 4xx/5xx is final.
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


#: What to do about a file that is not what the catalog says.
CATALOG_REMEDY = "correct the model's url, or its size_bytes and sha256"


class DownloadError(Exception):
    """A download that failed for good. The text is a clause without the host's name.

    ``status`` is the answer's HTTP status and ``code`` its ``X-Error-Code`` (Hugging Face), where there was an answer.
    """

    def __init__(self, message: str, status: Optional[int] = None, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Paused(Exception):
    """The download was asked to stop; what has arrived is kept, and the next call goes on there."""


def origin(url: str) -> Tuple[str, str, Optional[int]]:
    """Return scheme, host and port of an address: who gets what is sent there."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections; a token goes along only where they stay on the server that it is for."""

    def redirect_request(  # noqa: PLR0917 - urllib's signature
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        # urllib knows 308 since Python 3.11.
        found = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if found is not None and authorization and origin(newurl) == origin(req.full_url):
            found.add_unredirected_header("Authorization", authorization)
        return found

    def http_error_308(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        return self.http_error_302(req, fp, code, msg, headers)


def _open(url: str, token: Optional[str], timeout: float, headers: Dict[str, str]) -> Any:
    """Send a GET request; the caller has checked the scheme."""
    sent = {"User-Agent": "inference-fleet", "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(url, headers=sent)  # noqa: S310 - the scheme is checked by the callers
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with _network():
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


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
    if isinstance(error, http.client.IncompleteRead) and error.expected:
        return f"the answer ended {error.expected} bytes early"
    if "timed out" in str(reason):
        return f"nothing arrived for {stall_timeout:g} s"
    return str(reason) or type(reason).__name__


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Return the seconds that a server asks to wait, 0 when it asks for none."""
    asked = error.headers.get("Retry-After") or ""
    limit = _RATE_LIMIT.search(error.headers.get("RateLimit") or "")
    seconds = asked if asked.isdigit() else limit.group(1) if limit else "0"
    return min(_LONGEST_PAUSE, float(seconds))


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


def _fetch_once(
    url: str,
    out: BinaryIO,
    size_bytes: Optional[int],
    stall_timeout: float,
    *,
    token: Optional[str],
    remedy: str,
    paused: Callable[[], bool],
) -> None:
    """Append what is missing to ``out``, or start again where the server can't continue."""
    offset = out.seek(0, os.SEEK_END)
    with _open(url, token, stall_timeout, {"Range": f"bytes={offset}-"} if offset else {}) as response:
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
            raise DownloadError(f"{shown_url(url)} offers {expected} bytes where {size_bytes} are expected; {remedy}")
        written = offset
        while True:
            if paused():
                raise Paused
            # read1 returns what is there, so an interrupted transfer keeps everything that arrived.
            with _network():
                chunk = response.read1(CHUNK_BYTES)
            if not chunk:
                break
            out.write(chunk)
            written += len(chunk)
            if size_bytes and written > size_bytes:
                raise DownloadError(
                    f"{shown_url(url)} sends more than the {size_bytes} bytes that are expected; {remedy}"
                )
        out.flush()
        wanted = expected if expected is not None else size_bytes
        if wanted is not None and written < wanted:
            raise http.client.IncompleteRead(b"", wanted - written)


def download(
    url: str,
    out: BinaryIO,
    *,
    size_bytes: Optional[int],
    stall_timeout: float = 60.0,
    retries: int = 5,
    pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
    token: Optional[str] = None,
    remedy: str = CATALOG_REMEDY,
    paused: Callable[[], bool] = lambda: False,
) -> None:
    """Download ``url`` into the open file ``out``, going on after the bytes that are already in it.

    ``size_bytes`` is the size the file must have (``None``: unknown). ``stall_timeout`` is the number of seconds
    without a byte after which an attempt is given up; ``retries`` is how many failed attempts *without progress* in a
    row are allowed; ``pause`` (s) doubles between them, up to 30 s, unless the server asks for more. ``token`` goes to
    this server only, not to those that it redirects to. ``remedy`` says what to do about another size. When
    ``paused()`` becomes true it raises :class:`Paused`. Raises :class:`DownloadError`; ``OSError`` of the local disk
    passes through.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{shown_url(url)} is no http or https address")
    failures = 0
    while True:
        before, asked = out.seek(0, os.SEEK_END), 0.0
        if size_bytes and before >= size_bytes:
            return
        try:
            _fetch_once(url, out, size_bytes, stall_timeout, token=token, remedy=remedy, paused=paused)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:
                out.seek(0)
                out.truncate()
            elif error.code not in _TRANSIENT_STATUS:
                raise DownloadError(
                    f"{shown_url(url)} answered {error.code} {error.reason}; "
                    "check the model's url and whether this host may read it",
                    error.code,
                    error.headers.get("X-Error-Code"),
                ) from error
            problem, asked = f"answered {error.code} {error.reason}", _asked_pause(error)
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
        sleep(max(asked, min(30.0, pause * 2 ** (failures - 1))))


def read(
    url: str,
    *,
    token: Optional[str] = None,
    accept: str = "application/json",
    stall_timeout: float = 60.0,
    retries: int = 5,
    pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Tuple[bytes, Optional[str]]:
    """Return a small answer (up to 64 MiB) and the address of the next page, None for the last one.

    The arguments are those of :func:`download`. Raises :class:`DownloadError`.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{shown_url(url)} is no http or https address")
    for attempt in range(retries + 1):
        asked = 0.0
        try:
            with _open(url, token, stall_timeout, {"Accept": accept}) as response, _network():
                following = _NEXT_PAGE.search(response.headers.get("Link") or "")
                target = urllib.parse.urljoin(url, following.group(1)) if following else None
                return response.read(_MOST_BYTES), target
        except urllib.error.HTTPError as error:
            problem, asked = f"answered {error.code} {error.reason}", _asked_pause(error)
            if error.code not in _TRANSIENT_STATUS:
                raise DownloadError(
                    f"{shown_url(url)} {problem}", error.code, error.headers.get("X-Error-Code")
                ) from error
        except (urllib.error.URLError, http.client.HTTPException) as error:
            problem = f"failed: {_explain(error, stall_timeout)}"
        if attempt < retries:
            sleep(max(asked, min(30.0, pause * 2**attempt)))
    raise DownloadError(
        f"{shown_url(url)} {problem} after {retries + 1} attempt{'s' if retries else ''}; check the network or proxy "
        "of this host and run again"
    )
