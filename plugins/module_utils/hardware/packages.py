# SPDX-License-Identifier: Apache-2.0
"""What dpkg's own record says of the packages that matter: container engines, GPU drivers, kernels."""

from __future__ import annotations

import re
from typing import Any, Dict, NamedTuple, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

DPKG = "var/lib/dpkg"
#: Packages of container engines, whose versions and holds the runtime facts are made of.
RUNTIME = r"docker|containerd|runc|moby|nvidia-container|libnvidia-container|podman|crun"
#: Packages of GPU drivers and of what they are built for and upgraded with.
DRIVERS = (
    r"nvidia|libnvidia|cuda|libcuda|firmware-nvidia|xserver-xorg-video-nvidia|dkms$|linux-(?:image|headers)-"
    r"|linux-modules-(?:extra|nvidia)-|amdgpu|amdrocm|rocm|amd-smi|linux-firmware"
    r"|firmware-(?:amd-graphics|intel-graphics|misc-nonfree)$|mesa-vulkan-drivers$|libvulkan1$"
    r"|vulkan-tools$|intel-media|mokutil$|initramfs-tools$|dracut$|unattended-upgrades$"
)
_STANZA = re.compile(rf"\n\nPackage: ((?:{RUNTIME}|{DRIVERS.replace('$', chr(92) + 'b')})[^\n]*)")
_RUNTIME_NAME = re.compile(RUNTIME)
_DRIVER_NAME = re.compile(DRIVERS)


class Package(NamedTuple):
    """A package that dpkg has a trace of."""

    #: Debian's version, epoch and revision included.
    version: Optional[str]
    #: dpkg's word: `installed`, `half-configured`, `unpacked`, `half-installed`, `config-files` …
    state: str
    held: bool


def read(host: Host) -> Optional[Dict[str, Package]]:
    """Return the packages by name, None on a node without dpkg.

    A package of another architecture than the node's is called as dpkg does, `libnvidia-ml1:i386`.
    """
    status = host.text(DPKG, "status")
    if status is None:
        return None
    # The first line is the node's own; the file is there once another one was added.
    native = (host.text(DPKG, "arch") or "").split("\n", 1)[0]
    found: Dict[str, Package] = {}
    _add(status, native, found)
    # What an interrupted dpkg did last is in a journal that the next one merges into the record (dpkg's dbmodify.c).
    for name in host.names(DPKG, "updates"):
        if name.isdigit():
            _add(host.text(DPKG, "updates", name) or "", native, found)
    return found


def _add(status: str, native: str, found: Dict[str, Package]) -> None:
    text = "\n\n" + status
    for match in _STANZA.finditer(text):
        end = text.find("\n\n", match.end())
        block = text[match.start() : end if end >= 0 else len(text)]
        words = re.search(r"^Status: (\S+) \S+ (\S+)$", block, re.MULTILINE)
        if words is None:
            continue
        architecture = re.search(r"^Architecture: (\S+)$", block, re.MULTILINE)
        name = match.group(1)
        if native and architecture and architecture.group(1) not in (native, "all"):
            name += f":{architecture.group(1)}"
        if words.group(2) == "not-installed":
            found.pop(name, None)
            continue
        version = re.search(r"^Version: (\S+)$", block, re.MULTILINE)
        found[name] = Package(version.group(1) if version else None, words.group(2), words.group(1) == "hold")


def runtime(packages: Optional[Dict[str, Package]]) -> Dict[str, Package]:
    """Return those of the container engines that are installed."""
    return {
        name: package
        for name, package in (packages or {}).items()
        if _RUNTIME_NAME.match(name) and package.state == "installed"
    }


def drivers(packages: Optional[Dict[str, Package]]) -> Optional[Dict[str, Dict[str, Any]]]:
    """Return those of GPUs and kernels as the facts show them, None on a node without dpkg."""
    if packages is None:
        return None
    return {
        name: {"version": package.version, "state": package.state, "held": package.held}
        for name, package in sorted(packages.items())
        if _DRIVER_NAME.match(name.partition(":")[0])
    }
