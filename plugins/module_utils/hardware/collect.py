# SPDX-License-Identifier: Apache-2.0
"""All facts of a node, put together from every source."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import drm, nvidia, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    VENDORS,
    Device,
    number,
    public,
    units,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

# Goes up when a field goes away or changes its meaning; new fields leave it as it is.
SCHEMA_VERSION = 1
KFD_NODES = "sys/class/kfd/kfd/topology/nodes"


def collect(
    host: Host,
    *,
    nvidia_smi_xml: Optional[str] = None,
    amd_smi_json: Optional[str] = None,
    vulkaninfo: Optional[str] = None,
    pynvml: Optional[str] = None,
    storage_path: str = "/var/lib/inference-fleet",
    state_path: str = "/etc/inference-fleet",
    measurements_path: str = "/var/lib/inference-fleet/measurements.json",
) -> Dict[str, Any]:
    """Return the facts (`ansible_facts.gpu`); a source that fails leaves its part unknown and an entry in `errors`.

    Sizes are bytes. `nvidia_smi_xml`, `amd_smi_json` and `vulkaninfo` are paths of recorded outputs, which are read in
    the place of the tools; `pynvml` is the source of nvidia-ml-py's module, None to use the node's own.
    """
    report = host.report
    devices, nvswitches = report.guard("sysfs", lambda: _bus(host), pci.Bus([], None))
    report.guard("drm", lambda: drm.collect(host, devices), None)
    # All that may be slow runs from here on; it is collected once the rest is read.
    finish = _start(
        host, devices, pynvml, nvidia_smi_xml=nvidia_smi_xml, amd_smi_json=amd_smi_json, vulkaninfo=vulkaninfo
    )
    # Imported now, since compiling them takes about as long as NVML does to answer.
    from ansible_collections.fleet.inference.plugins.module_utils.hardware import machine, topology  # noqa: PLC0415

    facts = machine.collect(host, storage_path, state_path, measurements_path, nvidia.loaded_module(host)[0])
    memory_total = facts["memory_total_bytes"]
    amd_driver = report.guard("amd", partial(finish["amd"], memory_total), None)
    report.guard("intel", finish["intel"], None)
    nvidia_driver = report.guard("nvidia", partial(finish["nvidia"], memory_total), None)
    instances = report.guard("vulkaninfo", finish["vulkaninfo"], None)
    for device in number(devices):
        device["name"] = device["name"] or report.guard("sysfs", partial(pci.product_name, host, device), None)
    tier, vendor = tier_of(devices)
    return {
        "schema_version": SCHEMA_VERSION,
        "tier": tier,
        "vendor": vendor,
        "vendors": [vendor for vendor in VENDORS if any(device["vendor"] == vendor for device in devices)],
        "physical_count": len(devices),
        "usable_count": sum(units(device) for device in devices),
        "driver": _driver(host, devices, nvidia_driver or {}, amd_driver or {}, facts["boot"]),
        "devices": [public(device) for device in devices],
        "topology": report.guard(
            "topology", lambda: topology.collect(host, devices), {"matrix": [], "link_domains": []}
        ),
        "nvswitch_count": nvswitches,
        "vulkan": instances,
        **facts,
        "errors": report.errors,
        "probes": report.probes,
    }


def _start(
    host: Host,
    devices: List[Device],
    pynvml: Optional[str],
    *,
    nvidia_smi_xml: Optional[str],
    amd_smi_json: Optional[str],
    vulkaninfo: Optional[str],
) -> Dict[str, Callable[..., Any]]:
    """Start what is slow and return, by source, what collects it.

    Only what this node needs is imported: Ansible sends a module as source, which is compiled in every run.
    """
    vendors = {device["vendor"] for device in devices}
    finish: Dict[str, Callable[..., Any]] = {}

    def start(source: str, module: Any, *arguments: Any) -> None:
        pending = host.report.guard(source, lambda: module.start(host, devices, *arguments), None)
        if pending is not None:
            finish[source] = partial(module.finish, pending, host, devices)

    def absent(sources: Tuple[str, ...], message: str) -> None:
        for source in sources:
            host.report.probe(source, "absent", message)

    start("nvidia", nvidia, nvidia_smi_xml, pynvml)
    if "amd" in vendors or amd_smi_json or host.exists(KFD_NODES):
        from ansible_collections.fleet.inference.plugins.module_utils.hardware import amd  # noqa: PLC0415

        start("amd", amd, amd_smi_json)
    else:
        absent(("kfd", "amdgpu"), "no AMD GPU")
    if "intel" in vendors:
        from ansible_collections.fleet.inference.plugins.module_utils.hardware import intel  # noqa: PLC0415

        start("intel", intel)
    else:
        absent(("intel",), "no Intel GPU")
    if vulkaninfo or vendors & {"amd", "intel"} or not devices:
        from ansible_collections.fleet.inference.plugins.module_utils.hardware import vulkan  # noqa: PLC0415

        start("vulkaninfo", vulkan, vulkaninfo)
    else:
        absent(("vulkaninfo",), "not asked: no GPU that is used through Vulkan")
    # What could not be started is in `errors` already.
    return {source: finish.get(source, _nothing) for source in ("amd", "intel", "nvidia", "vulkaninfo")}


def _nothing(*_: Any) -> None:
    return None


def tier_of(devices: List[Device]) -> Tuple[str, Optional[str]]:
    """Return what accelerates the node, and whose GPUs these are.

    A usable NVIDIA GPU or MIG instance makes `cuda`; else a usable AMD GPU with a gfx target and kfd `rocm`; else any
    other usable GPU `vulkan`; else `cpu`. On `cpu` the vendor is that of the first GPU which is not integrated: the
    one that a driver would make usable.
    """
    for device in devices:
        # Only NVIDIA's own driver tells of the health; a GPU that Vulkan alone knows has no CUDA.
        if device["vendor"] == "nvidia" and device["health"] and units(device):
            return "cuda", "nvidia"
    for device in devices:
        if device["vendor"] == "amd" and device["usable"] and device["architecture"] and device["kfd"]:
            return "rocm", "amd"
    for device in devices:
        if device["usable"]:
            return "vulkan", device["vendor"]
    return "cpu", next((device["vendor"] for device in devices if not device["integrated"]), None)


def _bus(host: Host) -> pci.Bus:
    started = time.monotonic()
    there = host.exists(pci.PCI_DEVICES)
    bus = pci.collect(host)
    ms = int((time.monotonic() - started) * 1000)
    host.report.probe("sysfs", "ok" if there else "absent", None if there else f"/{pci.PCI_DEVICES} is not there", ms)
    return bus


def _driver(
    host: Host,
    devices: List[Device],
    nvidia_driver: Dict[str, Any],
    amd_driver: Dict[str, Any],
    booted: Dict[str, Any],
) -> Dict[str, Any]:
    """NVIDIA's driver where there is a trace of it, else AMD's; what is `booted` may keep it waiting for a reboot."""
    from ansible_collections.fleet.inference.plugins.module_utils.hardware import boot  # noqa: PLC0415

    amdgpu = amd_driver.get("version")
    version = nvidia_driver.get("version")
    if version is None and not any(device["vendor"] == "nvidia" for device in devices):
        version = amdgpu
    bound = {
        module: [str(device["driver_bound"]) for device in devices if device["vendor"] == vendor]
        for vendor, module in (("nvidia", "nvidia"), ("amd", "amdgpu"))
        if any(device["vendor"] == vendor for device in devices)
    }
    loaded = {
        "nvidia": nvidia_driver.get("kernel_module_version"),
        "amdgpu": host.text("sys/module/amdgpu/version") or None,
    }
    reason = nvidia_driver.get("reboot_reason") or boot.reboot_reason(booted, bound, loaded)
    return {
        "version": version,
        "library_version": nvidia_driver.get("library_version"),
        "kernel_module_version": nvidia_driver.get("kernel_module_version"),
        "module_flavour": nvidia_driver.get("module_flavour"),
        "cuda_version": nvidia_driver.get("cuda_version"),
        "mismatch": bool(nvidia_driver.get("mismatch")),
        "amdgpu_version": amdgpu,
        "rocm_version": amd_driver.get("rocm_version"),
        "reboot_required": reason is not None,
        "reboot_reason": reason,
    }
