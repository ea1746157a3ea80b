# SPDX-License-Identifier: Apache-2.0
"""What a recipe is, and what several of them do alike."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..host import podman
from ..shell import run

#: Lock files and small programs of the images.
IMAGES_FOLDER = Path(__file__).resolve().parents[2] / "images"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An engine image, and how it is made here.

    Attributes:
        name: Short name, as ``local_nodes images`` and ``local_node_images`` of inventories take it.
        repository: The official repository with its registry.
        tag: The tag that the version table wants.
        build: Makes the image under a given local name; the folder is a temporary one.
        inputs: Files and folders that the image is made from; it is made anew when one of them changes.
        path: Repository in the local registry; empty is the official one without its registry.
        official: Whether the official image is taken where its registry can be reached; false for stand-ins.
    """

    name: str
    repository: str
    tag: str
    build: Callable[[str, Path], None]
    inputs: tuple[Path, ...]
    path: str = ""
    official: bool = True

    @property
    def reference(self) -> str:
        """The official image's name and tag."""
        return f"{self.repository}:{self.tag}"

    @property
    def local_path(self) -> str:
        """Repository in the local registry."""
        return self.path or self.repository.partition("/")[2]

    def key(self) -> str:
        """Return what changes when any of the inputs does."""
        digest = hashlib.sha256()
        for item in self.inputs:
            files = sorted(each for each in item.rglob("*") if each.is_file()) if item.is_dir() else [item]
            for file in files:
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def import_image(archive: Path, image: str, changes: list[str]) -> None:
    """Make an image of a root file system; ``changes`` are instructions of a Dockerfile."""
    podman("import", "--quiet", *(word for change in changes for word in ("--change", change)), archive, image)


def unpack_wheels(lock: Path, python: str, wheels: Path, site: Path) -> None:
    """Unpack all that a lock file names, for an image's Python whatever this machine's is.

    Args:
        lock: Requirements with hashes.
        python: The image's Python without a dot, such as ``313``.
        wheels: Folder that the wheels are downloaded to.
        site: Folder that they are unpacked to.
    """
    # Up to the C library of Debian 12, newest first.
    platforms = [*(f"manylinux_2_{minor}" for minor in range(36, 4, -1)), "manylinux2014", "manylinux2010"]
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    argv += ["--python-version", python, "--implementation", "cp"]
    argv += [word for abi in (f"cp{python}", "abi3", "none") for word in ("--abi", abi)]
    argv += [word for platform in [*platforms, "manylinux1"] for word in ("--platform", f"{platform}_x86_64")]
    run([*argv, "-d", str(wheels), "-r", str(lock)])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
