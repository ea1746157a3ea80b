# SPDX-License-Identifier: Apache-2.0
"""The record of one GPU, and how what several sources say about it becomes one record."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Optional

Device = Dict[str, Any]

VENDORS = ("nvidia", "amd", "intel")

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
    """Return a record in which everything but `known` is unknown."""
    device: Device = {
        "index": None,
        "uuid": None,
        "pci_bus_id": pci_bus_id,
        "vendor": vendor,
        "name": None,
        "architecture": None,
        "memory_total_bytes": None,
        "memory_used_bytes": None,
        "unified_memory": False,
        "integrated": False,
        "numa_node": None,
        "driver_bound": None,
        "render_node": None,
        "mig": {"mode": None, "instances": []},
        "partition": None,
        "links": [],
        "usable": False,
        "unusable_reason": None,
    }
    device.update(known)
    return device


def merge(devices: List[Device], found: Iterable[Device]) -> List[Device]:
    """Add what another source found: the same PCI address, or else the same UUID, is the same device.

    What is known already stays; a flag is set when any source sets it. Returns `devices`, extended in place.
    """
    for record in found:
        known = _same(devices, record)
        if known is None:
            devices.append(record)
            continue
        for key, value in record.items():
            if key == "mig":
                if known["mig"]["mode"] is None:
                    known["mig"] = value
            elif isinstance(value, bool):
                known[key] = bool(known.get(key)) or value
            elif known.get(key) in (None, []):
                known[key] = value
    return devices


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
