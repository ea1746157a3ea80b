# SPDX-License-Identifier: Apache-2.0
"""Images of the nodes themselves: a bare Debian with systemd, and the same with a container engine in it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from .apt_sources import debian_sources
from .host import podman
from .settings import PREFIX
from .shell import LocalNodesError, run, step

RELEASES = {"trixie": "Debian 13", "bookworm": "Debian 12"}
LAYERS = ("bare", "runtime")

#: What any cloud image has, and nothing that a role installs.
BARE_PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-apt",
    "sudo",
    "iproute2",
    "ca-certificates",
    "openssh-server",
    "procps",
]
#: What the roles container_runtime and gateway would install; scenarios that test neither begin with it.
RUNTIME_PACKAGES = {
    "trixie": ["docker.io", "docker-cli", "iptables", "haproxy"],
    "bookworm": ["docker.io", "iptables", "haproxy"],
}
#: dpkg leaves out what no test reads, which halves the image.
LEAN = [
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
]
#: The login user is an ordinary one with sudo, as on most servers. A container can't load kernel modules.
SETUP = """\
set -eu
useradd --create-home --shell /bin/bash fleet
echo 'fleet ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/fleet
chmod 0440 /etc/sudoers.d/fleet
systemctl mask systemd-modules-load.service systemd-udevd.service getty.target console-getty.service
rm -f /etc/ssh/ssh_host_*
units=/etc/systemd/system
printf '%s\\n' '[Unit]' 'ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key' '[Service]' 'Type=oneshot' \\
  'ExecStart=/usr/bin/ssh-keygen -A' >$units/ssh-host-keys.service
mkdir -p $units/ssh.service.d
printf '%s\\n' '[Unit]' 'Wants=ssh-host-keys.service' 'After=ssh-host-keys.service' >$units/ssh.service.d/keys.conf
"""


def _key(*inputs: str) -> str:
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]


def exists(image: str) -> bool:
    """Whether podman has ``image``."""
    return podman("image", "exists", image, check=False).returncode == 0


def mmdebstrap(release: str, packages: list[str], out: Path, *options: str) -> None:
    """Write a root file system as a tar archive. An expired Release file is accepted for the rolling suite only."""
    sources = debian_sources(release)
    extra = [] if release in RELEASES else ['--aptopt=Acquire::Check-Valid-Until "false"']
    argv = ["mmdebstrap", "--quiet", *LEAN, *extra, *options, f"--include={','.join(packages)}", release, str(out)]
    run([*argv, *sources], root=True)


def _bare(release: str) -> str:
    image = f"localhost/{PREFIX}/node:bare-{release}-{_key(release, *BARE_PACKAGES, *LEAN, SETUP)}"
    if exists(image):
        return image
    with step(f"node image {RELEASES[release]}, bare"), tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        archive = Path(folder) / "root.tar"
        script = Path(folder) / "setup.sh"
        script.write_text(SETUP)
        # Mirrors behind a private authority work in the nodes as they do here.
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        hooks = [f'--customize-hook=chroot "$1" sh -s <{script}']
        if Path(bundle).exists():
            hooks.append(f"--customize-hook=copy-in {bundle} /etc/ssl/certs")
        mmdebstrap(release, BARE_PACKAGES, archive, "--variant=minbase", *hooks)
        podman("import", "--quiet", "--change", 'CMD ["/sbin/init"]', archive, image)
    return image


def _runtime(release: str) -> str:
    base = _bare(release)
    packages = RUNTIME_PACKAGES[release]
    image = f"localhost/{PREFIX}/node:runtime-{release}-{_key(base, *packages)}"
    if exists(image):
        return image
    builder = f"{PREFIX}-build-{release}"
    script = (
        "set -eu; export DEBIAN_FRONTEND=noninteractive; apt-get update -q; "
        f"apt-get install -q -y --no-install-recommends {' '.join(packages)}; "
        "rm -rf /var/cache/apt/archives/*.deb"
    )
    with step(f"node image {RELEASES[release]}, with a container engine"):
        podman("rm", "--force", builder, check=False)
        podman("run", "--name", builder, "--privileged", base, "sh", "-c", script)
        podman("commit", "--quiet", "--change", 'CMD ["/sbin/init"]', builder, image)
        podman("rm", "--force", builder)
    return image


def node_image(layer: str, release: str) -> str:
    """Name of the podman image for a node; built when it is not there yet.

    Args:
        layer: ``bare`` (as a provider hands over a server) or ``runtime`` (container engine and HAProxy installed).
        release: Debian's code name, ``trixie`` or ``bookworm``.
    """
    if layer not in LAYERS or release not in RELEASES:
        raise LocalNodesError(
            f"no node image {layer!r} of {release!r}; layers are {', '.join(LAYERS)}, releases {', '.join(RELEASES)}"
        )
    return _bare(release) if layer == "bare" else _runtime(release)
