# SPDX-License-Identifier: Apache-2.0
"""Signed apt repositories of stand-in packages, where a vendor's own repository can't be reached from the tests.

The packages have the names, versions and relations of the vendor's; what is in them is as small as can be. The
repositories are made once, live in the cache, and are served to the nodes over HTTP by a container of their network.
Every repository has a ``key.asc``. A key is made on this machine when it is first needed, so no test knows a
fingerprint by heart: it asks the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from pathlib import Path

from .host import ensure_network, network_options, podman
from .registry import usr_image
from .settings import PREFIX, cache_dir, vendor_repository_address
from .shell import LocalNodesError, alone, run, step

NAME = f"{PREFIX}-vendor-repository"
PORT = 80
#: Part of every cache key: changes with what this module makes of the same packages.
FORMAT = "1"


@dataclasses.dataclass(frozen=True)
class Package:
    """A stand-in package.

    Attributes:
        name: Name of the package.
        version: Its whole version.
        relations: Fields of its control file such as ``Depends``.
        files: Path from the root → content. A file below a ``bin`` or ``sbin`` folder is executable.
        scripts: Maintainer script such as ``postinst`` → content.
        architecture: ``amd64`` or ``all``.
    """

    name: str
    version: str
    relations: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    scripts: dict[str, str] = dataclasses.field(default_factory=dict)
    architecture: str = "amd64"

    @property
    def file_name(self) -> str:
        """Name of the package's file; a colon of an epoch does not belong in it."""
        return f"{self.name}_{self.version.rpartition(':')[2]}_{self.architecture}.deb"


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository below the server's root.

    Attributes:
        path: Where it is.
        packages: What it offers.
        suite: Name of its suite with the one component ``main``; None for a flat one, as NVIDIA's is.
        key: Name of the key that it hands out as ``key.asc``.
        signer: Name of the key that signs it; None for the one that it hands out.
        label: Label of its Release file, which pins may name.
    """

    path: str
    packages: tuple[Package, ...]
    suite: str | None = None
    key: str = "first"
    signer: str | None = None
    label: str = "stand-in"


@contextlib.contextmanager
def _gpg() -> Iterator[Callable[..., str]]:
    """A gpg with an empty home: below the folder for temporary files, because its agent's socket has a short path."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as home:
        options = ["--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        yield lambda *argv: run(["gpg", *options, *argv]).stdout
        run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False)


def _key(name: str) -> Path:
    """Folder of the key called ``name``, with ``key.asc`` and ``secret.asc``; made when it is not there yet."""
    folder = cache_dir() / "vendor-keys" / name
    if not (folder / "key.asc").exists():
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with _gpg() as gpg:
            user = f"stand-in repository key {name} <{name}@stand-in.invalid>"
            gpg("--quick-generate-key", user, "ed25519", "sign", "never")
            (folder / "secret.asc").write_text(gpg("--armor", "--export-secret-keys"))
            (folder / "key.asc").write_text(gpg("--armor", "--export"))
    return folder


def _sign(release: Path, key: str) -> None:
    """Write ``InRelease`` and ``Release.gpg`` beside a Release file."""
    with _gpg() as gpg:
        gpg("--import", _key(key) / "secret.asc")
        gpg("--clearsign", "--output", release.with_name("InRelease"), release)
        gpg("--armor", "--detach-sign", "--output", release.with_name("Release.gpg"), release)


def _control(package: Package) -> str:
    fields = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": package.architecture,
        "Maintainer": "stand-in <stand-in@stand-in.invalid>",
        "Section": "stand-in",
        "Priority": "optional",
        **package.relations,
        "Description": f"stand-in for {package.name}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def _build(package: Package, pool: Path) -> Path:
    """Build the package's file, or find it in the pool."""
    digest = hashlib.sha256(f"{FORMAT}\0{package!r}".encode()).hexdigest()[:16]
    built = pool / digest / package.file_name
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        root = Path(folder) / "root"
        for path, content in package.files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755 if file.parent.name in ("bin", "sbin") else 0o644)
        control = root / "DEBIAN"
        control.mkdir(parents=True)
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        (control / "control").write_text(_control(package))
        for name, content in package.scripts.items():
            (control / name).write_text(content)
            (control / name).chmod(0o755)
        unfinished = Path(folder) / package.file_name
        run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, unfinished])
        shutil.move(unfinished, built)
    return built


def _stanza(package: Package, file: Path, filename: str) -> str:
    content = file.read_bytes()
    extra = f"Filename: {filename}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    return _control(package) + extra


def _release(repository: Repository, indexes: dict[str, bytes]) -> str:
    lines = ["Origin: stand-in", f"Label: {repository.label}", f"Date: {formatdate(usegmt=True)}"]
    if repository.suite:
        lines += [f"Suite: {repository.suite}", f"Codename: {repository.suite}", "Components: main"]
    lines += ["Architectures: amd64", "SHA256:"]
    lines += [f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}" for name, data in indexes.items()]
    return "\n".join(lines) + "\n"


def _write(repository: Repository, root: Path, pool: Path) -> None:
    """Write one repository below ``root``."""
    base = root / repository.path
    files = "" if repository.suite is None else "pool/"
    lists = base if repository.suite is None else base / "dists" / repository.suite
    index = "Packages" if repository.suite is None else "main/binary-amd64/Packages"
    (base / files).mkdir(parents=True, exist_ok=True)
    stanzas = []
    for package in repository.packages:
        built = _build(package, pool)
        file = base / files / package.file_name
        if not file.exists():
            os.link(built, file)
        prefix = "./" if repository.suite is None else files
        stanzas.append(_stanza(package, built, prefix + package.file_name))
    plain = "\n".join(stanzas).encode()
    indexes = {index: plain, f"{index}.gz": gzip.compress(plain)}
    for name, data in indexes.items():
        (lists / name).parent.mkdir(parents=True, exist_ok=True)
        (lists / name).write_bytes(data)
    (lists / "Release").write_text(_release(repository, indexes))
    _sign(lists / "Release", repository.signer or repository.key)
    shutil.copy(_key(repository.key) / "key.asc", base / "key.asc")


def build(repositories: Iterable[Repository]) -> Path:
    """Make the repositories where they are not there yet; returns the folder to serve."""
    wanted = tuple(repositories)
    digest = hashlib.sha256(f"{FORMAT}\0{wanted!r}".encode()).hexdigest()[:16]
    home = cache_dir() / "vendor-repository"
    folder = home / digest
    if not folder.exists():
        with step("stand-in vendor repositories"):
            home.mkdir(parents=True, exist_ok=True)
            for old in home.glob("*.tmp"):
                shutil.rmtree(old)
            unfinished = home / f"{digest}.tmp"
            for repository in wanted:
                _write(repository, unfinished, home / "pool")
            unfinished.rename(folder)
    return folder


def url(path: str = "") -> str:
    """Address of a repository, as the nodes and this machine reach it."""
    return f"http://{vendor_repository_address()}/{path}"


def _serves(folder: Path) -> bool:
    try:
        with urllib.request.urlopen(url("digest"), timeout=3) as reply:
            return str(reply.read().decode()) == folder.name
    except OSError:
        return False


def ensure_vendor_repository(repositories: Iterable[Repository]) -> bool:
    """Serve the repositories to the nodes; false when they are served already."""
    with alone(cache_dir()):
        folder = build(repositories)
        (folder / "digest").write_text(folder.name)
        if _serves(folder):
            return False
        ensure_network()
        with step(f"stand-in vendor repositories on {url()}"):
            stop_vendor_repository()
            command = ["/usr/bin/python3", "-m", "http.server", "--directory", "/srv", str(PORT)]
            options = ["--privileged", *network_options(vendor_repository_address())]
            volumes = ["--volume", "/usr:/usr:ro", "--volume", f"{folder}:/srv:ro"]
            podman("run", "--detach", "--name", NAME, *options, *volumes, usr_image(), *command)
            for _ in range(60):
                if _serves(folder):
                    return True
                time.sleep(0.25)
        log = podman("logs", "--tail", "5", NAME, check=False).stderr.strip()
        raise LocalNodesError(f"the stand-in vendor repositories do not answer on {url()}: {log}")


def stop_vendor_repository() -> None:
    """Remove the server's container; the repositories stay in the cache."""
    podman("kill", NAME, check=False)
    podman("rm", "--force", "--ignore", NAME)


def remove_vendor_repository() -> None:
    """Remove what was built and the keys, too."""
    stop_vendor_repository()
    for name in ("vendor-repository", "vendor-keys"):
        shutil.rmtree(cache_dir() / name, ignore_errors=True)
