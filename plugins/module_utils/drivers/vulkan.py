# SPDX-License-Identifier: Apache-2.0
"""Decide what a node needs so that its AMD and Intel GPUs without ROCm are usable through Vulkan.

Engines bring Mesa in their images. On the node there has to be the kernel's driver with its firmware, a group for the
devices, and Mesa itself, without which nobody there could tell whether a GPU answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers import common
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import Facts, Refusals
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import choices_text

#: The role's variables that decide.
VARIABLES = ("vulkan_state", "vulkan_tools")

#: The sections of the distribution's sources that are added where they are missing.
COMPONENTS = "/etc/apt/sources.list.d/inference-fleet-vulkan-components.sources"
#: Kernel drivers that Mesa's Vulkan drivers speak to: RADV is for amdgpu, ANV for i915 and xe.
DRIVERS = {"amd": ("amdgpu",), "intel": ("i915", "xe")}


def plan(host: str, facts: Facts, variables: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the node needs and which steps are left to do.

    Args:
        host: Name of the host, for the messages.
        facts: The ``gpu`` facts of the host.
        variables: Values of VARIABLES.
        table: ``inference_drivers``.

    Raises:
        DriverError: What is wanted can't be had on this host; a sentence for each reason.
    """
    common.require_facts(facts, host, "vulkan_facts")
    refusals = Refusals(host)
    absent = variables["vulkan_state"] == "absent"
    devices = vulkan_devices(facts, table)
    result = _result(str(variables["vulkan_state"]), bool(devices) and not absent)
    if not devices and not absent:
        result["decisions"].append("there is no GPU that only Vulkan can use")
        return result
    systems = table["vulkan"]["systems"]
    key = common.os_key(facts)
    if key not in systems:
        if absent:
            return result
        refusals.add(f"vulkan can't set up Mesa on {common.os_title(facts)}; use one of {choices_text(systems)}")
        refusals.tell()
    if absent:
        _remove(result, facts, systems[key])
    else:
        _install(result, facts, systems[key], devices, bool(variables["vulkan_tools"]))
        _look_at_devices(result, facts, systems[key], devices, refusals)
    steps, packages = result["steps"], result["packages"]
    steps["install"], steps["remove"] = bool(packages["install"]), bool(packages["remove"] or result["obsolete_files"])
    packages["owned"] = [re.escape(name) for name in (*packages["install"], *packages["remove"])]
    broken = common.broken_packages(facts)
    steps["repair"] = bool(broken) and (result["needed"] or steps["remove"])
    if packages["install"]:
        for problem in common.disk_problems(facts, table["vulkan"]["space_mib"]):
            refusals.add(problem)
    refusals.tell()
    return result


def vulkan_devices(facts: Facts, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the AMD and Intel GPUs that no ROCm image has code for.

    A GPU inside a processor counts where services may be put on it: nearly every server has one that only shows the
    console.
    """
    rocm = table["amd"]["rocm_architectures"]
    return [
        device
        for vendor in DRIVERS
        for device in common.devices_of(facts, vendor)
        if device.get("driver_bound") != "vfio-pci"
        and device.get("architecture") not in rocm
        and (device.get("usable") or not device.get("integrated"))
    ]


def _result(state: str, needed: bool) -> dict[str, Any]:
    return {
        "needed": needed,
        "state": state,
        "packages": {"install": [], "remove": [], "owned": []},
        "obsolete_files": [],
        "components": [],
        "groups": [],
        "steps": {"repair": False, "install": False, "remove": False, "groups": False},
        "reboot": {"required": False, "reason": None},
        "decisions": [],
    }


def _remove(result: dict[str, Any], facts: Facts, entry: Mapping[str, Any]) -> None:
    names = [*entry["packages"], *entry["tools"]]
    result["packages"]["remove"] = [name for name in names if common.installed(facts, name)]
    result["obsolete_files"] = [COMPONENTS] if COMPONENTS in (facts.get("files") or {}) else []
    result["needed"] = bool(result["packages"]["remove"] or result["obsolete_files"])
    result["decisions"].append("the kernel's drivers and their firmware stay: they are the distribution's")


def _install(
    result: dict[str, Any], facts: Facts, entry: Mapping[str, Any], devices: list[dict[str, Any]], tools: bool
) -> None:
    vendors = [vendor for vendor in DRIVERS if any(device["vendor"] == vendor for device in devices)]
    wanted = [*entry["packages"], *(entry["tools"] if tools else [])]
    wanted += [name for vendor in vendors for name in entry["firmware"].get(vendor, [])]
    if facts.get("packages") is None:
        # Without dpkg only vulkaninfo's answer tells whether Mesa is there.
        result["packages"]["install"] = [] if (facts.get("vulkan") or {}).get("devices") else wanted
    else:
        result["packages"]["install"] = [name for name in wanted if not common.installed(facts, name)]
    result["components"] = list(entry.get("components") or [])
    result["groups"] = ["render", "video"]
    groups = facts.get("groups") or {}
    result["steps"]["groups"] = any(groups.get(name) is None for name in result["groups"])


def _look_at_devices(
    result: dict[str, Any],
    facts: Facts,
    entry: Mapping[str, Any],
    devices: list[dict[str, Any]],
    refusals: Refusals,
) -> None:
    """Say which GPU Vulkan will not see, and whether a restart is what it waits for."""
    release = common.next_kernel(facts)
    amdgpu_lacks = bool(common.kernel(facts, release)) and common.module_of(facts, release, "amdgpu") is None
    for device in devices:
        bound, name = device.get("driver_bound"), str(device.get("name") or device["pci_bus_id"])
        if bound in DRIVERS[device["vendor"]]:
            result["decisions"].append(f"{name} is used through Vulkan: no ROCm image has code for it")
        elif bound == "radeon":
            result["decisions"].append(
                f"{name} is driven by radeon, which has no Vulkan; amdgpu takes it with the kernel parameters "
                "radeon.si_support=0 radeon.cik_support=0 amdgpu.si_support=1 amdgpu.cik_support=1"
            )
        elif device["vendor"] == "amd" and amdgpu_lacks and bound is None:
            kernel_package = entry.get("kernel_package")
            refusals.add(
                f"vulkan_state is 'present' but the kernel {release} has no amdgpu driver for {name}; install "
                f"{kernel_package or 'a kernel that has one'}, or set vulkan_state to 'absent'"
            )
        elif bound is None and not result["reboot"]["required"]:
            reason = f"no driver has {name}, which is looked for again at the next start"
            result["reboot"] = {"required": True, "reason": reason}
