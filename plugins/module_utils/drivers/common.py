# SPDX-License-Identifier: Apache-2.0
"""What all driver decisions share: their error, the table, the kernel's headers, packages, files and restarts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import size_text

Facts = Mapping[str, Any]

#: States of dpkg in which a package was left in the middle of something.
BROKEN_STATES = frozenset({"half-configured", "half-installed", "triggers-awaited", "triggers-pending", "unpacked"})

#: Who wrote a file, for the people who find it.
HEAD = "Written by Ansible for the inference fleet; changes are lost at the next run."

_DEBIAN_FLAVOUR = re.compile(r"-(?P<flavour>(?:(?:cloud|rt)-)?(?:amd64|arm64|arm64-16k))\Z")
_UBUNTU_FLAVOUR = re.compile(r"\A[0-9.]+-[0-9]+-(?P<flavour>[a-z][a-z0-9.-]*)\Z")


class DriverError(ValueError):
    """What is wanted can't be had; a sentence for each reason: host, variable, what is wrong, what would be right.

    The text has a line for each of the ``problems``.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Refusals:
    """Collects a host's refusals, so that all are told at once."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Remember a problem: ``<variable> is <what>; <what would be right>``."""
        sentence = f"{self._host}: {text}"
        if sentence not in self._texts:
            self._texts.append(sentence)

    def tell(self) -> None:
        """Raise DriverError with all problems, if there is any."""
        if self._texts:
            raise DriverError(*self._texts)


def require_facts(facts: Facts, host: str, variable: str) -> None:
    """Refuse facts that are missing, or too old to tell of kernels and packages."""
    if not facts:
        raise DriverError(
            f"{host}: {variable} is empty because nothing has read this host's facts; run the role "
            "fleet.inference.preflight or the module fleet.inference.gpu_facts before this role"
        )
    missing = [key for key in ("boot", "devices", "driver", "files", "os", "packages", "units") if key not in facts]
    if missing:
        raise DriverError(
            f"{host}: {variable} lacks {', '.join(missing)}; read the facts again with fleet.inference.gpu_facts of "
            "this version"
        )


def os_key(facts: Facts) -> str:
    """Return how the table names the operating system: ``debian 13``, ``ubuntu 24.04``, ``rhel 9``.

    Rebuilds of RHEL of the same major version take its packages and kernel modules.
    """
    system = facts["os"]
    version = str(system.get("version_id") or "")
    if system.get("family") == "redhat":
        return f"rhel {version.partition('.')[0]}"
    return f"{system.get('id')} {version}"


def os_title(facts: Facts) -> str:
    """Return the operating system as sentences name it: ``rocky 9.6``."""
    return f"{facts['os'].get('id')} {facts['os'].get('version_id') or ''}".strip()


def devices_of(facts: Facts, vendor: str) -> list[dict[str, Any]]:
    """Return the vendor's GPUs that are on PCI."""
    return [item for item in facts.get("devices") or [] if item.get("vendor") == vendor and item.get("pci_bus_id")]


def kernel(facts: Facts, release: str | None) -> dict[str, Any]:
    """Return what the facts say of a kernel, an empty dictionary when they do not know it."""
    kernels: Sequence[dict[str, Any]] = facts["boot"].get("kernels") or []
    return next((item for item in kernels if item.get("release") == release), {})


def next_kernel(facts: Facts) -> str:
    """Return the release of the kernel that the machine starts next."""
    boot = facts["boot"]
    return str(boot.get("next_kernel") or boot.get("running_kernel") or facts["os"].get("kernel"))


def module_of(facts: Facts, release: str, name: str) -> dict[str, Any] | None:
    """Return what the facts say of the module ``name`` that a kernel would load, None when it has none."""
    found: dict[str, Any] | None = (kernel(facts, release).get("modules") or {}).get(name)
    return found


def installed(facts: Facts, name: str) -> bool:
    """Tell whether a package is installed and configured."""
    package = (facts.get("packages") or {}).get(name)
    return package is not None and package.get("state") == "installed"


def installed_version(facts: Facts, name: str) -> str | None:
    """Return the installed version of a package, None when it is not there."""
    return facts["packages"][name].get("version") if installed(facts, name) else None


def broken_packages(facts: Facts) -> list[str]:
    """Return the names of the packages about GPUs and kernels that an interrupted run of dpkg left half-done."""
    packages = facts.get("packages") or {}
    return sorted(name for name, package in packages.items() if package.get("state") in BROKEN_STATES)


def upstream_version(version: str) -> str:
    """Return a package version without epoch and revision: ``580.95.05`` for ``1:580.95.05-0ubuntu1``."""
    without_epoch = version.split(":", 1)[-1]
    return without_epoch.rsplit("-", 1)[0]


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the sorted names that one of the regular expressions describes as a whole."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return sorted(name for name in set(names) if any(pattern.fullmatch(name) for pattern in compiled))


def headers_package(facts: Facts, release: str | None = None) -> str | None:
    """Return the meta package that brings the headers of this and of every later kernel of its kind.

    Debian and Ubuntu build a module for the next kernel only when its headers came along with it: the headers of one
    release alone leave the machine without a driver after the next upgrade. Where the kernel's own meta package is
    installed (``linux-image-generic-hwe-24.04``), the headers' is its twin.

    Args:
        facts: The facts of the node.
        release: Release of the kernel; the one that starts next when it is not given.

    Returns:
        The name, or None when the kernel is of no kind that the distribution names so.
    """
    release = release or next_kernel(facts)
    family = facts["os"].get("family")
    if family == "redhat":
        # NVIDIA's driver installation guide, RHEL 9 and later: it wants the headers of exactly the installed kernel.
        return "kernel-devel-matched"
    pattern = _UBUNTU_FLAVOUR if facts["os"].get("id") == "ubuntu" else _DEBIAN_FLAVOUR
    found = pattern.search(release)
    if family != "debian" or not found:
        return None
    flavour = found["flavour"]
    metas = [
        name.removeprefix("linux-image-")
        for name in sorted(facts.get("packages") or {})
        if re.match(r"linux-image-[a-z]", name) and not name.endswith("-dbg") and installed(facts, name)
    ]
    # Ubuntu's virtual machines have linux-image-virtual, whose kernels are of the flavour generic.
    twins = [
        meta for meta in metas if meta.startswith(flavour) or (flavour == "generic" and meta.startswith("virtual"))
    ]
    return f"linux-headers-{min(twins, key=len) if twins else flavour}"


def missing_headers(facts: Facts) -> list[str]:
    """Return the packages that give the next kernel its headers: none where they are there for good.

    The meta package alone could bring those of a newer kernel than the installed one, so those of the release come
    with it.
    """
    meta = headers_package(facts)
    release = next_kernel(facts)
    wanted = [] if meta is None or installed(facts, meta) else [meta]
    if not kernel(facts, release).get("headers"):
        wanted.append(
            f"linux-headers-{release}" if facts["os"].get("family") == "debian" else f"kernel-devel-{release}"
        )
    return wanted


def file_entry(path: str, content: str, mode: str = "0644") -> dict[str, str]:
    """Return a file that a role writes."""
    return {"path": path, "content": content, "mode": mode}


def file_agrees(facts: Facts, entry: Mapping[str, str]) -> bool:
    """Tell whether the node has a file with this content already."""
    digest = hashlib.sha256(entry["content"].encode()).hexdigest()
    return bool((facts.get("files") or {}).get(entry["path"]) == digest)


def disk_problems(facts: Facts, needed_mib: Mapping[str, int]) -> Iterator[str]:
    """Yield a problem for every path with less free space than is needed, in MiB."""
    free = facts["boot"].get("free_bytes") or {}
    for path, mebibytes in sorted(needed_mib.items()):
        there = free.get(path)
        if there is not None and there < mebibytes * 1024**2:
            yield (
                f"{path} has {size_text(there)} free and installing the driver needs {size_text(mebibytes * 1024**2)}; "
                "remove old kernels and packages (apt-get autoremove --purge, apt-get clean), or enlarge it"
            )


def restart(policy: str, reason: str | None) -> dict[str, Any]:
    """Return whether the play has to restart the node: with a reason, unless the role's policy is ``never``.

    The reason is there all the same, so that it can be told.
    """
    return {"required": reason is not None and policy != "never", "reason": reason}
