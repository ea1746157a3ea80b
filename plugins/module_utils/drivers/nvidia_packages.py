# SPDX-License-Identifier: Apache-2.0
"""The packages of NVIDIA's driver on a node: what is missing, what is in the way, where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers import common
from ansible_collections.fleet.inference.plugins.module_utils.drivers.nvidia_choice import Case, Wish, packages

PREFERENCES_PATH = "/etc/apt/preferences.d/inference-fleet-nvidia"
UPGRADES_PATH = "/etc/apt/apt.conf.d/52inference-fleet-nvidia"
SOURCES_PATH = "/etc/apt/sources.list.d/inference-fleet-nvidia.sources"
COMPONENTS_PATH = "/etc/apt/sources.list.d/inference-fleet-nvidia-components.sources"
KEY_PATH = "/etc/apt/keyrings/inference-fleet-nvidia.asc"
YUM_PATH = "/etc/yum.repos.d/inference-fleet-nvidia.repo"
YUM_KEY_PATH = "/etc/inference-fleet/inference-fleet-nvidia.asc"

#: Above 1000 apt even goes back to it: apt_preferences(5).
_PIN_PRIORITY = 1001
#: What the Release files of NVIDIA's repositories are labelled.
_VENDOR_LABEL = "NVIDIA CUDA"
#: Folders of NVIDIA's repositories.
_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}
#: Packages that bring a kernel module's source; a machine has one of them.
_MODULE_SOURCE = re.compile(r"nvidia-(.*-)?kernel(-open)?-dkms|nvidia-dkms(-.*)?")
_BRANCH_IN_NAME = re.compile(r"-([0-9]{3})(-server)?(-open)?(-|\Z)")
#: Those of them that exist for either kernel module.
_BOTH_FLAVOURS = re.compile(r"(linux-modules-nvidia|nvidia-(dkms|driver|headless|headless-no-dkms|kernel-source))-.*")


def kernel_flavour(case: Case) -> str | None:
    """Return how Ubuntu's packages of modules name the next kernel's kind: ``generic-hwe-24.04``, ``aws``."""
    meta = common.headers_package(case.facts, case.release)
    # The kernels of linux-image-virtual are generic ones.
    return None if meta is None else re.sub(r"\Avirtual", "generic", meta.removeprefix("linux-headers-"))


def wanted(case: Case, wish: Wish) -> dict[str, Any]:
    """Return the names of the driver's packages, the one with its version first, and Fabric Manager's."""
    flavour = kernel_flavour(case) if wish.entry["prebuilt"] else ""
    if flavour is None:
        case.refusals.add(
            f"the kernel {case.release} is of no kind that {case.system} has NVIDIA's modules for; install a kernel of "
            "the distribution (linux-generic), or set nvidia_driver_source to vendor"
        )
    named = packages(wish.entry, wish.branch, flavour or "")
    driver = [*named[wish.flavour], *named["common"]]
    if not case.variables["nvidia_driver_compute_only"]:
        driver += named["desktop"]
    fabric = bool(case.facts.get("nvswitch_count"))
    manager = named["fabric_manager"] if fabric else None
    if fabric and manager is None:
        case.refusals.add(
            f"nvidia_driver_source is {wish.source}, and {case.system} has no Fabric Manager, which this machine with "
            "its NVSwitches needs; set nvidia_driver_source to vendor"
        )
    if manager is not None:
        driver.append(manager)
        subnet = case.nvidia["subnet_manager"]
        if {str(gpu.get("architecture")) for gpu in case.gpus} & set(subnet["architectures"]):
            driver.append(subnet["package"])
    return {"driver": driver, "fabric": fabric, "same_version": [driver[0], manager] if manager else []}


def pending(case: Case, wish: Wish, driver: Sequence[str]) -> dict[str, Any]:
    """Return what is to be installed, what to be removed, and whether the next kernel's module is still to be built."""
    if case.facts["packages"] is None:
        return _pending_rpm(case, wish, driver)
    there = common.module_of(case.facts, case.release, "nvidia")
    version = common.installed_version(case.facts, driver[0])
    found = None if version is None else common.upstream_version(version)
    right = found is not None and found.split(".", maxsplit=1)[0] == wish.branch and wish.version in (None, found)
    loose = common.matching(driver, case.nvidia["loose_packages"])
    complete = all(
        common.installed(case.facts, name)
        and (name in loose or common.upstream_version(case.facts["packages"][name]["version"]) == found)
        for name in driver
    )
    install: list[str] = []
    if not (right and complete):
        target = wish.version or (found if right else None)
        install = [name if target is None or name in loose else f"{name}={target}-*" for name in driver]
    if not wish.entry["prebuilt"]:
        install += common.missing_headers(case.facts)
    elif right and there is None:
        # The package that follows the kernel is held, so the module of a newer kernel has to be asked for by name.
        suffix = kernel_flavour(case) or ""
        install += [f"{name.removesuffix(suffix)}{case.release}" for name in driver if "linux-modules" in name]
    built = there is not None and (not right or there.get("version") in (None, found))
    return {"install": install, "remove": _foreign(case, wish, driver), "build": not (wish.entry["prebuilt"] or built)}


def _pending_rpm(case: Case, wish: Wish, driver: Sequence[str]) -> dict[str, Any]:
    """Return the same where no facts tell of packages: the module and the library stand for them."""
    there = common.module_of(case.facts, case.release, "nvidia") or {}
    version = there.get("version")
    right = (
        version is not None
        and str(version).split(".", maxsplit=1)[0] == wish.branch
        and wish.version in (None, version)
        and there.get("flavour") in (None, wish.flavour)
        and case.facts["driver"].get("library_version") == version
        and ("nvidia-fabricmanager" not in driver or "nvidia-fabricmanager.service" in case.facts["units"])
    )
    headers = [] if common.kernel(case.facts, case.release).get("headers") else ["kernel-devel-matched"]
    install = [] if right else [name if wish.version is None else f"{name}-{wish.version}" for name in driver]
    return {"install": [*install, *headers], "remove": [], "build": not there}


def _foreign(case: Case, wish: Wish, driver: Sequence[str]) -> list[str]:
    """Return the installed packages that can't stay beside the wanted ones.

    Those with the same names become the wanted versions; these are the others: another kernel module, and names that
    carry another branch, another flavour or the distribution's "server" where the source has none, or the reverse.
    """
    server = any("-server" in name for name in driver)
    known = common.matching(case.facts["packages"], case.nvidia["driver_packages"])
    foreign = []
    for name in known:
        if name in driver or case.facts["packages"][name]["state"] == "config-files":
            continue
        carried = _BRANCH_IN_NAME.search(name)
        kinds = [bool(_MODULE_SOURCE.fullmatch(name)), "-tesla-" in name]
        if carried is not None:
            kinds.append(carried[1] != wish.branch)
            if _BOTH_FLAVOURS.fullmatch(name):
                kinds += [bool(carried[2]) != server, bool(carried[3]) != (wish.flavour == "open")]
        if any(kinds):
            foreign.append(name)
    return foreign


def hold(case: Case, wish: Wish) -> dict[str, list[str]]:
    """Return which packages are to be held, as patterns, and the installed ones that are not."""
    if not case.variables["nvidia_driver_hold"] or case.facts["packages"] is None:
        return {"patterns": [], "missing": []}
    patterns = list(case.nvidia["driver_packages"])
    if wish.entry["prebuilt"]:
        # A kernel that comes without the modules that belong to it leaves the machine without a driver.
        patterns.append("linux-(image|headers)-(?!unsigned-)[a-z].*")
    return held(case.facts, patterns)


def held(facts: common.Facts, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return patterns of packages to hold, and the installed ones among these that are not held."""
    packages_there = facts["packages"] or {}
    there = [name for name in common.matching(packages_there, patterns) if common.installed(facts, name)]
    return {"patterns": list(patterns), "missing": [name for name in there if not packages_there[name]["held"]]}


def refuse_conditions(case: Case, wish: Wish) -> None:
    """Refuse an installation that would end with a machine without a driver."""
    release = case.release
    built_here = not wish.entry["prebuilt"]
    if case.facts["boot"].get("secure_boot") and built_here and not case.variables["nvidia_driver_secure_boot_ready"]:
        signed = ""
        if case.nvidia["sources"]["distribution"].get(common.os_key(case.facts), {}).get("prebuilt"):
            signed = f"set nvidia_driver_source to distribution, whose modules are signed for {case.system}, or "
        case.refusals.add(
            f"Secure Boot is on, and would refuse the kernel module that is built here for {release}; {signed}"
            "enrol a machine owner key at the console (mokutil --import) that DKMS signs with and set "
            "nvidia_driver_secure_boot_ready to true, or turn Secure Boot off in the firmware"
        )
    headers = common.kernel(case.facts, release).get("headers")
    if built_here and not headers and common.headers_package(case.facts, release) is None:
        case.refusals.add(
            f"the kernel {release} has no headers and no known package that brings them, so no module can be built for "
            "it; install its headers, or a kernel of the distribution"
        )
    for problem in common.disk_problems(case.facts, case.nvidia["space_mib"]):
        case.refusals.add(problem)


def repository(case: Case, wish: Wish) -> dict[str, Any] | None:
    """Return NVIDIA's repository, None where the distribution's own is used."""
    if wish.source != "vendor":
        return None
    machine = str(case.facts["cpu"].get("architecture"))
    folder = _ARCHITECTURES.get(machine)
    url = case.variables["nvidia_driver_repository_url"]
    if url is None and folder is None:
        case.refusals.add(
            f"the processor is {machine}, for which NVIDIA has no repository; set nvidia_driver_repository_url to one"
        )
        return None
    url = str(url or f"{wish.entry['url']}/{folder}").rstrip("/")
    fingerprint = case.variables["nvidia_driver_repository_key_fingerprint"] or wish.entry["key_fingerprint"]
    if fingerprint is None:
        case.refusals.add(
            f"nvidia_driver_repository_key_fingerprint is empty, and the driver table has none for {case.system}; set "
            "it to that of the key at nvidia_driver_repository_key_url, which you have checked"
        )
        return None
    redhat = case.facts["os"].get("family") == "redhat"
    return {
        "url": url,
        "key_url": str(case.variables["nvidia_driver_repository_key_url"] or f"{url}/{wish.entry['key']}"),
        "key_fingerprint": str(fingerprint).replace(" ", "").upper(),
        "key_path": YUM_KEY_PATH if redhat else KEY_PATH,
        "path": YUM_PATH if redhat else SOURCES_PATH,
    }


def pins(case: Case, wish: Wish) -> list[str]:
    """Return apt's preferences: the wanted branch or version, and the driver's packages from one source only."""
    if case.facts["os"].get("family") != "debian":
        return []
    # With regular expressions in its preferences, apt takes seconds for the smallest question.
    names = " ".join(case.nvidia["driver_globs"])
    found = [_stanza(names, f"version {wish.version}-*", _PIN_PRIORITY)] if wish.version else []
    if wish.source == "distribution":
        return [*found, _stanza(names, f"release o={wish.entry['origin']}", _PIN_PRIORITY)]
    if not found:
        found.append(_stanza(names, f"version {wish.branch}.*", _PIN_PRIORITY))
    # CUDA and more is in that repository as well, and nothing of it replaces the distribution's.
    return [*found, _stanza("*", f"release l={_VENDOR_LABEL}", 100)]


def _stanza(names: str, pin: str, priority: int) -> str:
    return f"Package: {names}\nPin: {pin}\nPin-Priority: {priority}\n"


def package_files(case: Case, source: Mapping[str, Any] | None, stanzas: Sequence[str]) -> list[dict[str, str]]:
    """Return the files that the package manager reads; they are written together with the packages."""
    head = f"# {common.HEAD}\n"
    entries = []
    if source is not None:
        # The fingerprint is in it so that another key is a change of this file.
        head += f"# Key: {source['key_fingerprint']}\n"
        if case.facts["os"].get("family") == "redhat":
            content = (
                f"[inference-fleet-nvidia]\nname=NVIDIA's drivers\nbaseurl={source['url']}\nenabled=1\ngpgcheck=1\n"
                f"gpgkey=file://{source['key_path']}\n"
            )
        else:
            content = f"Types: deb\nURIs: {source['url']}/\nSuites: /\nSigned-By: {source['key_path']}\n"
        entries.append(common.file_entry(source["path"], head + content))
    if case.facts["os"].get("family") != "debian":
        return entries
    entries.append(common.file_entry(PREFERENCES_PATH, f"# {common.HEAD}\n\n" + "\n".join(stanzas)))
    if case.variables["nvidia_driver_hold"]:
        names = "".join(f'  "^{pattern}$";\n' for pattern in case.nvidia["driver_packages"])
        content = (
            f"// {common.HEAD}\n// A library that changes under a loaded module stops every service of the node.\n"
            f"Unattended-Upgrade::Package-Blacklist {{\n{names}}};\n"
        )
        entries.append(common.file_entry(UPGRADES_PATH, content))
    return entries
