# SPDX-License-Identifier: Apache-2.0
"""Which branch and which kernel module of NVIDIA's driver run a node's GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers import common
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import Facts, Refusals
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import suggestion_text

_MIG_PROFILE = re.compile(r"[1-9]g\.[0-9]+gb(\+(me|gfx|me\.all))?\Z")
#: Compute capabilities with Multi-Instance GPU: NVIDIA's MIG user guide, supported GPUs.
_MIG_ARCHITECTURES = frozenset({"8.0", "9.0", "10.0", "10.3", "12.0"})
_GPU_KEY = re.compile(r"(all|[0-9]+|GPU-[0-9a-f-]{36})\Z")


@dataclass
class Case:
    """A host, and everything that its driver is decided by."""

    facts: Facts
    variables: Mapping[str, Any]
    nvidia: Mapping[str, Any]
    gpus: Sequence[Mapping[str, Any]]
    refusals: Refusals

    @property
    def release(self) -> str:
        """The kernel that the machine starts next."""
        return common.next_kernel(self.facts)

    @property
    def system(self) -> str:
        """The operating system as sentences name it."""
        return common.os_title(self.facts)

    @property
    def names(self) -> str:
        """The GPUs as sentences name them."""
        return ", ".join(sorted({str(gpu.get("name")) for gpu in self.gpus}))


@dataclass
class Wish:
    """The driver that the GPUs need, before the node's packages are looked at."""

    source: str
    branch: str
    flavour: str
    version: str | None
    entry: Mapping[str, Any]
    decisions: list[str] = field(default_factory=list)


def choose(case: Case) -> Wish:
    """Return the driver that runs all of the node's GPUs; raises DriverError."""
    flavours, oldest, newest = _limits(case)
    case.refusals.tell()
    source, why_source = _source(case, oldest, newest)
    entry = case.nvidia["sources"][source].get(common.os_key(case.facts))
    if entry is None:
        _refuse_system(case, source)
    branch, why_branch = _branch(case, source, entry, oldest, newest)
    case.refusals.tell()
    flavour, why_flavour = _flavour(case, flavours, branch)
    version = case.variables["nvidia_driver_version"]
    if version is not None and str(version).split(".", maxsplit=1)[0] != branch:
        case.refusals.add(
            f"nvidia_driver_version is {version}, which is not of the branch {branch}; give a version that begins with "
            f"{branch}., or set nvidia_driver_branch to null"
        )
    _check_settings(case)
    case.refusals.tell()
    decisions = [why_source, why_branch, why_flavour]
    return Wish(source, branch, flavour, None if version is None else str(version), entry, decisions)


def packages(entry: Mapping[str, Any], branch: str, kernel_flavour: str = "") -> dict[str, Any]:
    """Return a source's packages of a branch by what they are for, with the names filled in."""
    sets = entry["packages"]
    chosen = next((item for item in sets if int(item.get("from", 0)) <= int(branch)), sets[-1])

    def named(text: str) -> str:
        return text.format(branch=branch, kernel=kernel_flavour)

    found: dict[str, Any] = {
        key: [named(name) for name in chosen[key]] for key in ("common", "open", "proprietary", "desktop")
    }
    manager = chosen.get("fabric_manager")
    return {**found, "fabric_manager": None if manager is None else named(manager)}


def is_somebody_elses(case: Case) -> bool:
    """Tell whether a driver works that neither source of the table has installed, and nothing else is asked for.

    Machines come with NVIDIA's installer run by hand, or in an image that the provider takes care of.
    """
    wishes = ("nvidia_driver_branch", "nvidia_driver_version", "nvidia_driver_flavour")
    if case.variables["nvidia_driver_source"] != "auto" or any(case.variables[name] is not None for name in wishes):
        return False
    driver = case.facts["driver"]
    works = driver.get("version") and driver.get("kernel_module_version") and not driver.get("reboot_required")
    key = common.os_key(case.facts)
    entries = [entries[key] for entries in case.nvidia["sources"].values() if key in entries]
    return bool(works) and not any(_installed_branch(case, entry) for entry in entries)


def _source(case: Case, oldest: int, newest: int | None) -> tuple[str, str]:
    """Return where the driver comes from and why. What is installed stays where it is from."""
    wanted = case.variables["nvidia_driver_source"]
    if wanted != "auto":
        return str(wanted), f"source {wanted}: nvidia_driver_source says so"
    key = common.os_key(case.facts)
    entries = {name: case.nvidia["sources"][name].get(key) for name in ("distribution", "vendor")}
    for name, entry in entries.items():
        if entry is not None and _installed_branch(case, entry):
            return name, f"source {name}: its driver is installed, and nvidia_driver_source names no other"
    offered = (entries["distribution"] or {}).get("branches") or []
    supported = [name for name in _usable(offered, oldest, newest) if case.nvidia["branches"][name]["supported"]]
    if supported or entries["vendor"] is None:
        return "distribution", f"source distribution: {case.system} has a branch that NVIDIA supports"
    return "vendor", f"source vendor: {case.system} itself has no branch that NVIDIA supports for {case.names}"


def _usable(branches: Sequence[str], oldest: int, newest: int | None) -> list[str]:
    return [name for name in branches if int(name) >= oldest and (newest is None or int(name) <= newest)]


def _refuse_system(case: Case, source: str) -> None:
    sources = case.nvidia["sources"]
    key = common.os_key(case.facts)
    others = [name for name, entries in sources.items() if key in entries]
    known = ", ".join(sorted({name for entries in sources.values() for name in entries}))
    remedy = f"set it to {others[0]}" if others else f"the driver table has {known}"
    case.refusals.add(f"nvidia_driver_source is {source}, which has no driver for {case.system}; {remedy}")
    case.refusals.tell()


def _limits(case: Case) -> tuple[list[str], int, int | None]:
    """Return the kernel modules that run all of the GPUs, and the oldest and newest branch that know all of them."""
    flavours = {"open", "proprietary"}
    oldest, newest = 0, None
    only: dict[str, Mapping[str, Any]] = {}
    for gpu in case.gpus:
        generation = gpu.get("generation")
        # A GPU that the tables of this version do not know yet is newer than they are.
        row: Any = {"flavours": ["open"], "oldest": 0, "newest": None}
        if generation:
            row = case.nvidia["generations"].get(generation)
        if row is None:
            case.refusals.add(
                f"{gpu['name']} at {gpu['pci_bus_id']} is of the generation {generation}, which no driver in the table "
                "supports; take it out, or bind it to vfio-pci"
            )
            continue
        flavours &= set(row["flavours"])
        if len(row["flavours"]) == 1:
            only.setdefault(row["flavours"][0], gpu)
        limits = {**row, **case.nvidia["architectures"].get(gpu.get("architecture"), {})}
        oldest = max(oldest, int(limits["oldest"]))
        if limits["newest"]:
            newest = int(limits["newest"]) if newest is None else min(newest, int(limits["newest"]))
    if not flavours:
        case.refusals.add(
            f"{only['proprietary']['name']} needs the proprietary kernel module and {only['open']['name']} the open "
            "one, and a machine has only one of them; take one of the GPUs out, or bind it to vfio-pci"
        )
    return sorted(flavours), oldest, newest


def _branch(case: Case, source: str, entry: Mapping[str, Any], oldest: int, newest: int | None) -> tuple[str, str]:
    """Return the branch and why. What is installed and can stay, stays."""
    offered = list(entry.get("branches") or case.nvidia["branches"])
    usable = _usable(offered, oldest, newest)
    supports = f"{case.names} needs branch {oldest} or later"
    if newest is not None:
        supports = f"the last branch for {case.names} is {newest}"
    wanted = case.variables["nvidia_driver_branch"]
    if wanted is None and case.variables["nvidia_driver_version"] is not None:
        wanted = str(case.variables["nvidia_driver_version"]).split(".", maxsplit=1)[0]
    if wanted is not None:
        return _wanted_branch(case, str(wanted), offered, usable, supports)
    if not usable:
        case.refusals.add(
            f"nvidia_driver_source is {source}, where {case.system} has "
            f"{', '.join(offered)}, and {supports}; set nvidia_driver_source to vendor"
        )
        return "", ""
    there = _installed_branch(case, entry)
    if there in usable:
        return str(there), f"branch {there}: it is installed, and nvidia_driver_branch names no other"
    best = _best(case, usable)
    if best == case.nvidia["default_branch"]:
        return best, f"branch {best}: the one with the longest support"
    return best, f"branch {best}: the nearest to {case.nvidia['default_branch']} that the source has for {case.names}"


def _wanted_branch(
    case: Case, wanted: str, offered: Sequence[str], usable: Sequence[str], supports: str
) -> tuple[str, str]:
    best = f"{_best(case, usable)} or null" if usable else "null and nvidia_driver_source to vendor"
    if wanted not in case.nvidia["branches"]:
        known = suggestion_text(wanted, case.nvidia["branches"], "the known ones are")
        case.refusals.add(f"nvidia_driver_branch is {wanted}, which is no branch of the driver table; {known}")
    elif wanted not in offered:
        case.refusals.add(
            f"nvidia_driver_branch is {wanted}, and {case.system} itself offers {', '.join(offered)}; set it to "
            f"{best}, or nvidia_driver_source to vendor"
        )
    elif wanted not in usable:
        case.refusals.add(f"nvidia_driver_branch is {wanted}, and {supports}; set it to {best}")
    supported = case.nvidia["branches"].get(wanted, {}).get("supported")
    ended = "" if supported else ", though NVIDIA no longer supports it"
    return wanted, f"branch {wanted}: nvidia_driver_branch or nvidia_driver_version says so{ended}"


def _best(case: Case, usable: Sequence[str]) -> str:
    """Return the default branch, or else the nearest below it, or else the nearest above it."""
    below = [name for name in usable if int(name) <= int(case.nvidia["default_branch"])]
    return below[-1] if below else usable[0]


def _installed_branch(case: Case, entry: Mapping[str, Any]) -> str | None:
    """Return the branch of the driver that is installed by this source's names."""
    if case.facts["packages"] is None:
        version = case.facts["driver"].get("library_version")
        return str(version).split(".", maxsplit=1)[0] if version else None
    for branch in case.nvidia["branches"]:
        named = packages(entry, branch)
        for flavour in ("open", "proprietary"):
            version = common.installed_version(case.facts, named[flavour][0])
            if version and common.upstream_version(version).split(".", maxsplit=1)[0] == branch:
                return str(branch)
    return None


def _flavour(case: Case, flavours: Sequence[str], branch: str) -> tuple[str, str]:
    """Return the kernel module and why."""
    row = case.nvidia["branches"][branch]
    usable = [flavour for flavour in flavours if flavour in row["flavours"]]
    wanted = case.variables["nvidia_driver_flavour"]
    if wanted not in (None, "open", "proprietary"):
        case.refusals.add(f"nvidia_driver_flavour is {wanted}; give open, proprietary or null")
    elif wanted is not None and wanted not in usable:
        case.refusals.add(
            f"nvidia_driver_flavour is {wanted}, and {case.names} runs with the {usable[0]} kernel module of branch "
            f"{branch} only; set it to {usable[0]} or null"
        )
    if wanted is not None:
        return str(wanted), f"{wanted} kernel module: nvidia_driver_flavour says so"
    if len(usable) == 1:
        return usable[0], f"{usable[0]} kernel module: {case.names} runs with no other on branch {branch}"
    return str(
        row["default_flavour"]
    ), f"{row['default_flavour']} kernel module: what suits {case.names} on branch {branch}"


def _check_settings(case: Case) -> None:
    """Refuse power limits and MIG layouts that are none."""
    for key, watts in (case.variables["nvidia_driver_power_limits"] or {}).items():
        if not _GPU_KEY.match(str(key)):
            case.refusals.add(f"nvidia_driver_power_limits has the key {key}; give all, a GPU's index or its UUID")
        elif isinstance(watts, bool) or not str(watts).isdigit() or int(watts) < 1:
            case.refusals.add(f"nvidia_driver_power_limits.{key} is {watts}; give a whole number of watts")
    capable = any(str(gpu.get("architecture")) in _MIG_ARCHITECTURES for gpu in case.gpus)
    for key, profiles in (case.variables["nvidia_driver_mig"] or {}).items():
        if not _GPU_KEY.match(str(key)):
            case.refusals.add(f"nvidia_driver_mig has the key {key}; give all, a GPU's index or its UUID")
        elif not isinstance(profiles, list) or not all(_MIG_PROFILE.match(str(name)) for name in profiles):
            case.refusals.add(
                f"nvidia_driver_mig.{key} is {profiles}; give a list of profiles such as 3g.40gb, empty for MIG off"
            )
        elif profiles and not capable:
            case.refusals.add(f"nvidia_driver_mig.{key} is {profiles}, and {case.names} can't be divided; set it to []")
