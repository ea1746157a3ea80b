# SPDX-License-Identifier: Apache-2.0
"""All facts of a node, put together from every source."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import (
    amd,
    cpu,
    intel,
    nvidia,
    pci,
    runtime,
    system,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import VENDORS, Device, number
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

SCHEMA_VERSION = 1
# What the sources tell each other and nobody else reads.
PRIVATE_KEYS = ("device_id", "kfd")


def collect(
    host: Host,
    *,
    nvidia_smi_xml: Optional[str] = None,
    amd_smi_json: Optional[str] = None,
    pynvml: Optional[str] = None,
    storage_path: str = "/var/lib/inference-fleet",
    state_path: str = "/etc/inference-fleet",
) -> Dict[str, Any]:
    """Return the facts (`ansible_facts.gpu`); a source that fails leaves its part unknown and an entry in `errors`.

    Sizes are bytes. `nvidia_smi_xml` is a recorded document that is read in the place of NVML and nvidia-smi,
    `amd_smi_json` a recorded `amd-smi static --json`, `pynvml` the path of nvidia-ml-py's module on the node.
    """
    report = host.report
    systemctl = host.start("systemctl", "--version")
    commands = runtime.Commands(host)
    memory_total, memory_available = report.guard("memory", lambda: system.memory(host), (None, None))
    devices = report.guard("sysfs", lambda: _bus(host), [])
    driver = report.guard("nvidia", lambda: nvidia.collect(host, devices, memory_total, nvidia_smi_xml, pynvml), {})
    amd_driver = report.guard("amd", lambda: amd.collect(host, devices, memory_total, amd_smi_json), {})
    report.guard("intel", lambda: intel.collect(host, devices), None)
    for device in number(devices):
        device["name"] = device["name"] or report.guard("sysfs", partial(_name, host, device), None)
    tier, vendor = tier_of(devices)
    return {
        "schema_version": SCHEMA_VERSION,
        "tier": tier,
        "vendor": vendor,
        "vendors": [vendor for vendor in VENDORS if any(device["vendor"] == vendor for device in devices)],
        "physical_count": len(devices),
        "usable_count": sum(int(device["usable"]) + len(device["mig"]["instances"]) for device in devices),
        "driver": _driver(devices, driver, amd_driver),
        "devices": [{key: device[key] for key in device if key not in PRIVATE_KEYS} for device in devices],
        "cpu": report.guard("cpu", lambda: cpu.collect(host), cpu.UNKNOWN),
        "memory_total_bytes": memory_total,
        "memory_available_bytes": memory_available,
        "os": report.guard("os", lambda: system.os_release(host, systemctl), dict.fromkeys(system.OS_KEYS)),
        "cgroup": report.guard("cgroup", lambda: system.cgroup(host), {"version": None, "controllers": []}),
        "network": {"addresses": report.guard("network", lambda: system.addresses(host), [])},
        "listening": report.guard("listening", lambda: system.listening(host), []),
        "groups": report.guard("groups", lambda: system.group_ids(host), {"render": None, "video": None}),
        "storage": report.guard("storage", lambda: system.storage(host, storage_path), system.no_storage(storage_path)),
        "runtime": runtime.collect(host, commands),
        "services": report.guard("services", lambda: system.services(host, state_path), []),
        "errors": report.errors,
        "probes": report.probes,
    }


def lacks_pynvml(host: Host) -> bool:
    """Say whether NVML could be asked on this node if only nvidia-ml-py were there."""
    return host.report.guard("nvidia", lambda: nvidia.wants_pynvml(host, pci.collect(host)), False)


def tier_of(devices: List[Device]) -> Tuple[str, Optional[str]]:
    """Return what accelerates the node, and whose GPUs these are.

    A usable NVIDIA GPU or MIG instance makes `cuda`; else a usable AMD GPU with a gfx target and kfd `rocm`; else a
    usable AMD or Intel GPU with a render node `vulkan`; else `cpu`. On `cpu` the vendor is that of the first GPU which
    is not integrated: the one that a driver would make usable.
    """
    for device in devices:
        if device["vendor"] == "nvidia" and (device["usable"] or device["mig"]["instances"]):
            return "cuda", "nvidia"
    for device in devices:
        if device["vendor"] == "amd" and device["usable"] and device["architecture"] and device.get("kfd"):
            return "rocm", "amd"
    for device in devices:
        if device["vendor"] in ("amd", "intel") and device["usable"] and device["render_node"]:
            return "vulkan", device["vendor"]
    return "cpu", next((device["vendor"] for device in devices if not device["integrated"]), None)


def _bus(host: Host) -> List[Device]:
    started = time.monotonic()
    there = host.exists(pci.PCI_DEVICES)
    devices = pci.collect(host)
    ms = int((time.monotonic() - started) * 1000)
    host.report.probe("sysfs", "ok" if there else "absent", None if there else f"/{pci.PCI_DEVICES} is not there", ms)
    return devices


def _name(host: Host, device: Device) -> Optional[str]:
    return pci.product_name(host, device["vendor"], device.get("device_id"))


def _driver(devices: List[Device], nvidia_driver: Dict[str, Any], amd_driver: Dict[str, Any]) -> Dict[str, Any]:
    """NVIDIA's driver where there is a trace of it, else AMD's."""
    version = nvidia_driver.get("version")
    if version is None and not any(device["vendor"] == "nvidia" for device in devices):
        version = amd_driver.get("version")
    return {
        "version": version,
        "library_version": nvidia_driver.get("library_version"),
        "kernel_module_version": nvidia_driver.get("kernel_module_version"),
        "module_flavour": nvidia_driver.get("module_flavour"),
        "cuda_version": nvidia_driver.get("cuda_version"),
        "rocm_version": amd_driver.get("rocm_version"),
        "reboot_required": bool(nvidia_driver.get("reboot_required")),
    }
