# SPDX-License-Identifier: Apache-2.0
"""Images of the nodes themselves: a bare Debian with systemd, and that with a container engine or a kernel in it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from .apt_sources import debian_sources
from .host import podman
from .settings import PREFIX
from .shell import LocalNodesError, run, step

RELEASES = {"trixie": "Debian 13", "bookworm": "Debian 12"}
LAYERS = ("bare", "runtime", "kernel")

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
#: The kernel that the node would boot if it were a machine. Containers run this machine's, which has no package here.
KERNEL_PACKAGES = ["linux-image-cloud-amd64", "initramfs-tools", "zstd"]
#: What drivers bring along is large, so it is downloaded once, into apt's cache; roles install it.
KERNEL_DOWNLOADS = {
    "trixie": ["linux-headers-cloud-amd64", "dkms", "nvidia-open-kernel-dkms", "nvidia-smi", "libcuda1"],
    "bookworm": ["linux-headers-cloud-amd64", "dkms", "nvidia-kernel-dkms", "nvidia-smi", "libcuda1"],
}
#: Drivers are in parts of Debian that the node itself has not enabled. A test's dpkg need not survive a power cut.
KERNEL_SETUP = """\
set -eu
export DEBIAN_FRONTEND=noninteractive
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/fast
sed 's/ main$/ contrib non-free non-free-firmware/' /etc/apt/sources.list >/etc/apt/sources.list.d/downloads.list
apt-get update -q
apt-get install -q -y --no-install-recommends {installed}
rm -f /var/cache/apt/archives/*.deb
apt-get install -q -y --no-install-recommends --download-only {downloaded}
rm /etc/apt/sources.list.d/downloads.list
"""
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


def _on_bare(layer: str, title: str, release: str, script: str) -> str:
    """The bare image of a release after a script ran in it."""
    base = _bare(release)
    image = f"localhost/{PREFIX}/node:{layer}-{release}-{_key(base, script)}"
    if exists(image):
        return image
    builder = f"{PREFIX}-build-{release}"
    with step(f"node image {RELEASES[release]}, {title}"):
        podman("rm", "--force", builder, check=False)
        podman("run", "--name", builder, "--privileged", base, "sh", "-c", script)
        podman("commit", "--quiet", "--change", 'CMD ["/sbin/init"]', builder, image)
        podman("rm", "--force", builder)
    return image


def _runtime(release: str) -> str:
    script = (
        "set -eu; export DEBIAN_FRONTEND=noninteractive; apt-get update -q; "
        f"apt-get install -q -y --no-install-recommends {' '.join(RUNTIME_PACKAGES[release])}; "
        "rm -rf /var/cache/apt/archives/*.deb"
    )
    return _on_bare("runtime", "with a container engine", release, script)


def _kernel(release: str) -> str:
    installed, downloaded = " ".join(KERNEL_PACKAGES), " ".join(KERNEL_DOWNLOADS[release])
    script = KERNEL_SETUP.format(installed=installed, downloaded=downloaded)
    return _on_bare("kernel", "with a kernel of its own", release, script)


def node_image(layer: str, release: str) -> str:
    """Name of the podman image for a node; built when it is not there yet.

    Args:
        layer: ``bare`` (as a provider hands over a server), ``runtime`` (container engine and HAProxy installed) or
            ``kernel`` (a kernel package of its own, and the large packages of drivers in apt's cache).
        release: Debian's code name, ``trixie`` or ``bookworm``.
    """
    if layer not in LAYERS or release not in RELEASES:
        raise LocalNodesError(
            f"no node image {layer!r} of {release!r}; layers are {', '.join(LAYERS)}, releases {', '.join(RELEASES)}"
        )
    return {"bare": _bare, "runtime": _runtime, "kernel": _kernel}[layer](release)
