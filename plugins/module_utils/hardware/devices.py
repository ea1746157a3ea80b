# SPDX-License-Identifier: Apache-2.0
"""The record of one GPU, and how what several sources say about it becomes one record."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Optional

Device = Dict[str, Any]

# In this order the facts list them; the last ones are graphics that only Vulkan tells of.
VENDORS = ("nvidia", "amd", "intel", "qualcomm", "arm", "broadcom", "imagination", "apple", "other")
ECC_KEYS = ("mode", "pending_mode", "uncorrected", "remap_pending", "remap_failure")
POWER_KEYS = ("limit_watts", "default_limit_watts", "min_limit_watts", "max_limit_watts")
PCIE_KEYS = ("generation_max", "generation_current", "width_max", "width_current")
# Fields that are never unknown: true when any source says so.
FLAGS = frozenset(("unified_memory", "integrated", "usable", "kfd"))
INTEGRATED_REASON = "an integrated GPU, it shares the host's memory; inference_integrated_gpus: true lets it be used"
# What the sources tell each other and nobody else reads.
PRIVATE_KEYS = frozenset(("folder", "kfd"))

_BUS_ID = re.compile(r"^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])$")


def bus_id(text: Optional[str]) -> Optional[str]:
    """Return a PCI address as sysfs writes it (`0000:01:00.0`), None when `text` is none.

    NVML and nvidia-smi print the domain with eight upper-case digits, other tools leave it out.
    """
    match = _BUS_ID.match((text or "").strip().lower())
    if match is None:
        return None
    domain, bus, slot, function = match.groups()
    return "{:04x}:{:02x}:{:02x}.{}".format(int(domain or "0", 16), int(bus, 16), int(slot, 16), function)


def new_device(vendor: str, pci_bus_id: Optional[str] = None, **known: Any) -> Device:
    """Return a record in which everything but `known` is unknown.

    The module's RETURN documents the fields. `folder` (the device's directory below the root) and `kfd` (it is a
    compute node) are for the sources among themselves; `public` leaves them out.
    """
    device: Device = {
        "index": None,
        "uuid": None,
        "pci_bus_id": pci_bus_id,
        "vendor": vendor,
        "name": None,
        "architecture": None,
        "generation": None,
        "pci": None,
        "compute_units": None,
        "memory_total_bytes": None,
        "memory_used_bytes": None,
        "memory_reserved_bytes": None,
        "carve_out_bytes": None,
        "gtt_bytes": None,
        "memory_bar_bytes": None,
        "unified_memory": False,
        "integrated": False,
        "numa_node": None,
        "cpu_affinity": None,
        "driver_bound": None,
        "device_node": None,
        "render_node": None,
        "power_state": None,
        "health": None,
        "virtualization": None,
        "persistence_mode": None,
        "compute_mode": None,
        "ecc": dict.fromkeys(ECC_KEYS),
        "power": dict.fromkeys(POWER_KEYS),
        "pcie": dict.fromkeys(PCIE_KEYS),
        "mig": {"mode": None, "pending_mode": None, "instances": []},
        "partition": None,
        "links": [],
        "fabric": None,
        "hive_id": None,
        "vulkan": None,
        "usable": False,
        "unusable_reason": None,
        "folder": None,
        "kfd": False,
    }
    device.update(known)
    return device


def public(device: Device) -> Device:
    """Return what the facts show of a record."""
    return {key: value for key, value in device.items() if key not in PRIVATE_KEYS}


def units(device: Device) -> int:
    """Return how many things on the device a service can be put on: itself, or its MIG instances or partitions."""
    if device["mig"]["instances"]:
        return len(device["mig"]["instances"])
    if not device["usable"]:
        return 0
    return max(1, (device["partition"] or {}).get("count") or 1)


def merge(devices: List[Device], found: Iterable[Device]) -> List[Device]:
    """Add what another source found: the same PCI address, or else the same UUID, is the same device.

    What is known already stays; a flag is set when any source sets it. Returns `devices`, extended in place.
    """
    for record in found:
        known = _same(devices, record)
        if known is None:
            devices.append(record)
            continue
        _fill(known, record)
    return devices


def _fill(known: Dict[str, Any], record: Dict[str, Any]) -> None:
    for key, value in record.items():
        present = known.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _fill(present, value)
        elif isinstance(value, bool) and isinstance(present, bool) and key in FLAGS:
            known[key] = present or value
        elif present in (None, []):
            known[key] = value


def _same(devices: List[Device], record: Device) -> Optional[Device]:
    for key in ("pci_bus_id", "uuid"):
        if record[key] is not None:
            for device in devices:
                if device[key] == record[key]:
                    return device
            if key == "pci_bus_id":
                return None
    return None


def number(devices: List[Device]) -> List[Device]:
    """Sort by vendor and PCI address and give every device without an index the vendor's next free one."""
    devices.sort(
        key=lambda device: (VENDORS.index(device["vendor"]), device["pci_bus_id"] or "~", device["uuid"] or "")
    )
    for vendor in VENDORS:
        own = [device for device in devices if device["vendor"] == vendor]
        taken = {device["index"] for device in own}
        following = 0
        for device in own:
            if device["index"] is None:
                while following in taken:
                    following += 1
                device["index"] = following
                taken.add(following)
    return devices
