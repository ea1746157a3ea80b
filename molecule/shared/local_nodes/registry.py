# SPDX-License-Identifier: Apache-2.0
"""The local image registry: Debian's docker-registry in a container on the nodes' network."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from .host import ensure_network, podman
from .node_images import exists
from .settings import PREFIX, cache_dir, registry_address
from .shell import LocalNodesError, step

NAME = f"{PREFIX}-registry"
IMAGE = f"localhost/{PREFIX}/usr-of-this-machine:1"
CONFIG = """\
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: /var/lib/registry}
http: {addr: ":5000"}
"""


def usr_image() -> str:
    """An image with no files but links into /usr, for the programs of this machine's own packages; returns its name."""
    if exists(IMAGE):
        return IMAGE
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        archive = Path(folder) / "root.tar"
        with tarfile.open(archive, "w") as tar:
            for name in ("usr", "etc", "var", "tmp"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for name in ("bin", "lib", "lib64"):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(link)
            content = CONFIG.encode()
            entry = tarfile.TarInfo("etc/registry.yml")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        podman("import", "--quiet", archive, IMAGE)
    return IMAGE


def answers() -> bool:
    """Whether the registry's API answers."""
    try:
        with urllib.request.urlopen(f"http://{registry_address()}/v2/", timeout=3) as reply:
            return reply.status == 200
    except OSError:
        return False


def ensure_registry() -> None:
    """Start the registry when it is not running; its images live in the cache and outlast it."""
    if answers():
        return
    ensure_network()
    storage = cache_dir() / "registry"
    storage.mkdir(parents=True, exist_ok=True)
    with step(f"image registry on {registry_address()}"):
        podman("rm", "--force", "--ignore", NAME)
        address = registry_address().partition(":")[0]
        command = ["/usr/bin/docker-registry", "serve", "/etc/registry.yml"]
        options = ["--privileged", "--network", PREFIX, "--ip", address, "--volume", "/usr:/usr:ro"]
        podman(
            "run",
            "--detach",
            "--name",
            NAME,
            *options,
            "--volume",
            f"{storage}:/var/lib/registry",
            usr_image(),
            *command,
        )
        for _ in range(60):
            if answers():
                return
            time.sleep(0.5)
    log = podman("logs", "--tail", "5", NAME, check=False).stderr.strip()
    raise LocalNodesError(f"the image registry does not answer on {registry_address()}: {log}")


def has(repository: str, tag: str) -> bool:
    """Whether the registry holds ``repository:tag`` (``repository`` without a registry's host)."""
    accept = (
        "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json, "
        "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"
    )
    url = f"http://{registry_address()}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status == 200
    except urllib.error.HTTPError:
        return False


def stop_registry() -> None:
    """Remove the registry's container; the images stay in the cache."""
    podman("rm", "--force", "--ignore", NAME)
