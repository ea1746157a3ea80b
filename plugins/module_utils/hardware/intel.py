# SPDX-License-Identifier: Apache-2.0
"""Intel: what the xe and i915 drivers show of each GPU in sysfs."""

from __future__ import annotations

import re
from typing import List, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.pci import PCI_DEVICES
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

DRIVERS = ("xe", "i915")
# The graphics inside an Intel processor always have this address.
INTEGRATED_BUS_ID = "0000:00:02.0"


def collect(host: Host, devices: List[Device]) -> None:
    """Add the memory of the Intel devices on the bus, and judge them."""
    cards = [device for device in devices if device["vendor"] == "intel"]
    if not cards:
        host.report.probe("intel", "absent", "no Intel GPU")
        return
    for card in cards:
        card["integrated"] = card["unified_memory"] = card["pci_bus_id"] == INTEGRATED_BUS_ID
        card["memory_total_bytes"] = None if card["integrated"] else _memory(host, card)
        driver = card["driver_bound"]
        if card["integrated"]:
            card["unusable_reason"] = "an integrated GPU, it shares the host's memory"
        elif driver is None:
            card["unusable_reason"] = "no driver is bound"
        elif driver not in DRIVERS:
            card["unusable_reason"] = f"bound to {driver}"
        elif card["render_node"] is None:
            card["unusable_reason"] = "it has no render node"
        card["usable"] = card["unusable_reason"] is None
    bound = any(card["driver_bound"] in DRIVERS for card in cards)
    host.report.probe("intel", "ok" if bound else "absent", None if bound else "neither xe nor i915 is bound")


def _memory(host: Host, card: Device) -> Optional[int]:
    """xe shows the memory of each tile, i915 that of the card."""
    folder = f"{PCI_DEVICES}/{card['pci_bus_id']}"
    tiles = [name for name in host.names(folder) if re.match(r"^tile[0-9]+$", name)]
    sizes = [host.integer(folder, tile, "physical_vram_size_bytes") for tile in tiles]
    sizes += [
        host.integer(folder, "drm", name, "lmem_total_bytes")
        for name in host.names(folder, "drm")
        if name.startswith("card")
    ]
    return sum(size for size in sizes if size) or None
