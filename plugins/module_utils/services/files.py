# SPDX-License-Identifier: Apache-2.0
"""The files that a service owns: read, compared, written atomically, put back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass
from typing import Iterator, List, Mapping, Optional, Tuple, Union

LOCK_POLL_SECONDS = 0.2


class LockTimeout(Exception):
    """Another run held the lock for too long."""


@dataclass(frozen=True)
class FileState:
    """A regular file as it is, or is wanted: content, permission bits, owner."""

    content: bytes
    mode: int
    uid: int
    gid: int

    def same_rights(self, other: FileState) -> bool:
        return (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)


@dataclass(frozen=True)
class OwnedFile:
    """A wanted file.

    `restarts`: a running service must be restarted to see it. `secret`: no output shows its content. `late`: it is
    written once the service is ready, because it says what runs.
    """

    path: str
    state: FileState
    restarts: bool = False
    secret: bool = False
    late: bool = False


def read_file(path: str) -> Optional[FileState]:
    """The file at `path`, None when there is none; raises `OSError` for anything else than a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(stream.fileno())
        return FileState(stream.read(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def write_file(path: str, state: FileState) -> None:
    """Replace `path` in one step; a reader sees the old file or the new one, and nobody sees it with wider rights."""
    temporary = f"{path}.inference-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(state.content)
            set_rights(stream.fileno(), state)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: str, text: str) -> None:
    """Replace a text file that everyone may read (mode 0644, of the caller's own user and group) in one step."""
    write_file(path, FileState(text.encode("utf-8"), 0o644, os.geteuid(), os.getegid()))


def set_rights(file: Union[int, str], state: FileState) -> None:
    """Give an open file or a path the owner and the permission bits of `state`."""
    found = os.stat(file)
    if (found.st_uid, found.st_gid) != (state.uid, state.gid):
        os.chown(file, state.uid, state.gid)
    os.chmod(file, state.mode)


def remove_file(path: str) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def make_directory(path: str, mode: int) -> None:
    """Make a directory with these permission bits, and its parents with 0755; an existing one keeps its own."""
    if os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)


def folder_owner(path: str) -> Optional[Tuple[int, int]]:
    """User and group id of a folder, None when there is none; raises `OSError` for anything else than a folder."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return found.st_uid, found.st_gid


def give_folder(path: str, owner: Tuple[int, int]) -> None:
    """Make a folder (mode 0700) if it is missing, and give it with all in it to `owner`; links are not followed."""
    make_directory(path, 0o700)
    for _folder, names, others, descriptor in os.fwalk(path):
        for name in [*names, *others]:
            os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)
    os.chown(path, *owner, follow_symlinks=False)


def fingerprint(contents: Mapping[str, bytes]) -> str:
    """One digest over the contents, by path, of all files that a running service was started with."""
    parts = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def plain_files(directory: str) -> List[str]:
    """The paths of the files right in a directory, sorted; none when it is not there."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    return [entry.path for entry in entries if not entry.is_dir(follow_symlinks=False)]


@contextlib.contextmanager
def locked(path: str, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`, waiting at most `timeout` seconds; raises `LockTimeout`."""
    make_directory(os.path.dirname(path), 0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeout(path) from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
