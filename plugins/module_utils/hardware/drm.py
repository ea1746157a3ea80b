# SPDX-License-Identifier: Apache-2.0
"""GPUs as the kernel's graphics drivers list them: `/sys/class/drm`, which containers and recordings may show alone."""

from __future__ import annotations

import re
import time
from typing import Dict, List, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware import pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, bus_id, merge
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

DRM = "sys/class/drm"


def collect(host: Host, devices: List[Device]) -> None:
    """Add the GPUs with a graphics driver that are not in `devices` yet, and the render nodes of those that are.

    A device that is not on the PCI bus (the display of a board, a partition of an AMD card) is none of them.
    """
    started = time.monotonic()
    names = host.names(DRM)
    cards = _addresses(host, names, r"^card[0-9]+$")
    known = {bus_id(name) for name in host.names(pci.PCI_DEVICES)} | set(cards.values())
    for name, address in cards.items():
        found = pci.read(host, f"{DRM}/{name}/device", address, known)
        if found is not None:
            merge(devices, [found])
    nodes: Dict[Optional[str], str] = {}
    for name, address in _addresses(host, names, r"^renderD[0-9]+$").items():
        nodes.setdefault(address, name)
    for device in devices:
        node = nodes.get(device["pci_bus_id"])
        if device["render_node"] is None and node is not None:
            device["render_node"] = f"/dev/dri/{node}"
    there = host.exists(DRM)
    ms = int((time.monotonic() - started) * 1000)
    host.report.probe("drm", "ok" if there else "absent", None if there else f"/{DRM} is not there", ms)


def _addresses(host: Host, names: List[str], pattern: str) -> Dict[str, str]:
    """Return the PCI addresses behind the entries that match; connectors (`card0-DP-1`) do not."""
    found = {}
    for name in names:
        address = _address(host, f"{DRM}/{name}/device") if re.match(pattern, name) else None
        if address is not None:
            found[name] = address
    return found


def _address(host: Host, folder: str) -> Optional[str]:
    return bus_id(pci.uevent_of(host, folder).get("PCI_SLOT_NAME")) or bus_id(host.link(folder))
