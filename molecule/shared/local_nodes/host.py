# SPDX-License-Identifier: Apache-2.0
"""What this machine needs before it can run local nodes: packages, and a pure cgroup-v2 view for podman."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .settings import PREFIX, RUN_DIR, cache_dir, subnet
from .shell import LocalNodesError, run, step

#: Program → Debian and Ubuntu package.
PROGRAMS = {
    "podman": "podman",
    "crun": "crun",
    "mmdebstrap": "mmdebstrap",
    "skopeo": "skopeo",
    "docker-registry": "docker-registry",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "mount": "mount",
    "ssh-keygen": "openssh-client",
    # Not for the nodes: unit tests run the gateway's configuration with it.
    "haproxy": "haproxy",
    # They build the signed repositories of stand-in packages.
    "dpkg-deb": "dpkg",
    "gpg": "gnupg",
    # They compile a stand-in for NVIDIA's management library.
    "cc": "gcc",
}
#: Packages without a program on PATH: file that shows that it is there → package.
FILES = {
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/usr/include/stdio.h": "libc6-dev",
    # Serves those repositories, from a container that has this machine's /usr.
    "/usr/bin/python3": "python3",
}
#: Podman's network, by file: what podman 4 uses, else what podman 3 (Ubuntu 22.04) uses.
NETWORK = {
    "/usr/lib/podman/netavark": ["netavark", "aardvark-dns"],
    "/usr/lib/cni/bridge": ["containernetworking-plugins"],
}
#: Podman's defaults raise limits, which a machine without CAP_SYS_RESOURCE refuses; these are lower and enough.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
pids_limit = 0
"""


def install_packages() -> None:
    """Install what is missing with apt; nothing is done, and nothing asked of the network, when all is there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    missing += [package for file, package in FILES.items() if not Path(file).exists()]
    network_missing = not any(Path(file).exists() for file in NETWORK)
    if not missing and not network_missing:
        return
    if not shutil.which("apt-get"):
        names = ", ".join([*missing, *(["netavark"] if network_missing else [])])
        raise LocalNodesError(f"this machine lacks {names} and has no apt-get; install them by hand")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with step("package lists of this machine"):
        run(["apt-get", "update", "-q"], env=environment, root=True)
    if network_missing:
        known = (packages for packages in NETWORK.values() if _apt_knows(packages[0]))
        missing += next(known, [])
    with step(f"packages of this machine: {' '.join(missing)}"):
        run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing], env=environment, root=True)
        # Only the programs are wanted: ours run in containers and in tests.
        for service in {"docker-registry", "haproxy"} & set(missing):
            run(["systemctl", "disable", "--now", service], check=False, root=True)


def _apt_knows(package: str) -> bool:
    shown = run(["apt-cache", "policy", package]).stdout
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def _namespace() -> list[str]:
    """Prefix for podman's command line; empty on an ordinary cgroup-v2 machine.

    Systemd in a container wants a writable cgroup-v2 tree. Where this machine mounts the hybrid layout, podman runs in
    a mount namespace of its own, in which /sys/fs/cgroup is cgroup v2. The namespace is kept as a bind mount below
    /run: a new one for each call would lose the network namespaces that podman keeps as mounts.
    """
    filesystem = ["stat", "-fc", "%T", "/sys/fs/cgroup"]
    if run(filesystem).stdout.strip() == "cgroup2fs":
        return []
    handle = RUN_DIR / "mnt"
    prefix = ["nsenter", f"--mount={handle}", "--"]
    if handle.exists() and run([*prefix, *filesystem], check=False, root=True).stdout.strip() == "cgroup2fs":
        return prefix
    run(["mkdir", "-p", RUN_DIR], root=True)
    if not os.path.ismount(RUN_DIR):
        run(["mount", "--bind", RUN_DIR, RUN_DIR], root=True)
    run(["mount", "--make-private", RUN_DIR], root=True)
    run(["touch", handle], root=True)
    inside = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    run(["unshare", f"--mount={handle}", "sh", "-c", inside], root=True)
    return prefix


def _podman_environment() -> dict[str, str]:
    file = cache_dir() / "containers.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != CONTAINERS_CONF:
        file.write_text(CONTAINERS_CONF)
    return {"CONTAINERS_CONF": str(file)}


_prefix: list[str] | None = None


def podman(
    *argv: str | Path, check: bool = True, text_input: str | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Call podman as root in the right mount namespace. Paths must be absolute."""
    global _prefix  # noqa: PLW0603 - looked up once a process
    if _prefix is None:
        _prefix = _namespace()
    words = [*_prefix, "podman", *argv]
    return run(words, check=check, text_input=text_input, timeout=timeout, env=_podman_environment(), root=True)


def network_options(address: str) -> list[str]:
    """Podman's options for a container at an address of the nodes' network.

    It gets the same hardware address after every start, so that no neighbour has to learn a new one.
    """
    hardware_address = "02:fe:" + ":".join(f"{int(part):02x}" for part in address.split("."))
    return ["--network", PREFIX, "--ip", address, "--mac-address", hardware_address]


def ensure_network() -> None:
    """Make the nodes' bridge network.

    Raises:
        LocalNodesError: its subnet belongs to something else on this machine.
    """
    if podman("network", "exists", PREFIX, check=False).returncode == 0:
        return
    made = podman("network", "create", "--subnet", str(subnet()), PREFIX, check=False)
    if made.returncode != 0:
        raise LocalNodesError(
            f"the local nodes' network {subnet()} could not be made ({made.stderr.strip()}); "
            "set INFERENCE_FLEET_SUBNET to a free /24 and use inventories with addresses in it"
        )
