# SPDX-License-Identifier: Apache-2.0
"""Intel: what the xe and i915 drivers show of each GPU in sysfs."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Dict, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import chips
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import INTEGRATED_REASON, Device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Child, Host, to_int

DRIVERS = ("xe", "i915")
# The graphics inside an Intel processor have this address.
INTEGRATED_BUS_ID = "0000:00:02.0"
# Microwatts. The sustained limit of the card, the burst limit of cards that have only that, and the package's.
LIMIT_FILES = ("power1_max", "power1_cap", "power2_max")
DEFAULT_LIMIT_FILES = ("power1_rated_max", "power2_rated_max")
LARGEST = 1 << 62

Pending = List[Tuple[Device, Child]]


def start(host: Host, devices: List[Device]) -> Pending:
    """Start reading what the driver shows of each Intel device; each one in a process of its own, for it may hang."""
    cards = [device for device in devices if device["vendor"] == "intel" and device["driver_bound"] in DRIVERS]
    return [(card, host.child(partial(_read, host, card), f"the driver of {card['pci_bus_id']}")) for card in cards]


def finish(pending: Pending, host: Host, devices: List[Device]) -> None:
    """Add what `start` found to the Intel devices, judge them, and report the probe `intel`."""
    cards = [device for device in devices if device["vendor"] == "intel"]
    for card in cards:
        chip = chips.identify("intel", to_int("0x" + ((card["pci"] or {}).get("device_id") or "")) or 0)
        if chip is not None:
            card["architecture"], card["generation"] = chip.architecture, chip.generation
        # In a virtual machine a card that was handed in may have the address as well.
        integrated = chip.integrated if chip else card["pci_bus_id"] == INTEGRATED_BUS_ID
        card["integrated"] = card["unified_memory"] = integrated
        card["unusable_reason"] = _unusable(host, card)
    outcomes = [(card, child.finish()) for card, child in pending]
    for card, outcome in outcomes:
        if outcome.status == "ok":
            if not card["integrated"]:
                card["memory_total_bytes"] = outcome.value["memory_total_bytes"]
            card["power"].update(outcome.value["power"])
        elif outcome.status == "timeout":
            card["health"] = "error"
            card["unusable_reason"] = f"its driver does not answer: {outcome.message}"
    for card in cards:
        card["usable"] = card["unusable_reason"] is None
    ms = max((outcome.ms for _, outcome in outcomes), default=0)
    failed = next((outcome for _, outcome in outcomes if outcome.status != "ok"), None)
    if failed is not None:
        host.report.probe("intel", failed.status, failed.message, ms)
    elif outcomes:
        host.report.probe("intel", "ok", None, ms)
    else:
        host.report.probe("intel", "absent", "neither xe nor i915 is bound" if cards else "no Intel GPU")


def _unusable(host: Host, card: Device) -> Optional[str]:
    driver = card["driver_bound"]
    if driver is None:
        return "no driver is bound"
    if driver not in DRIVERS:
        return f"bound to {driver}"
    return INTEGRATED_REASON if card["integrated"] and not host.integrated else None


def _read(host: Host, card: Device) -> Dict[str, object]:
    folder = card["folder"]
    # The sensors wake a card that sleeps.
    awake = host.wake or card["power_state"] != "suspended"
    return {
        "memory_total_bytes": _memory(host, folder),
        "power": {
            "limit_watts": _watts(host, folder, LIMIT_FILES) if awake else None,
            "default_limit_watts": _watts(host, folder, DEFAULT_LIMIT_FILES) if awake else None,
        },
    }


def _memory(host: Host, folder: str) -> Optional[int]:
    """xe shows the memory of each tile, i915 that of the card; many kernels show neither."""
    tiles = [name for name in host.names(folder) if re.match(r"^tile[0-9]+$", name)]
    sizes = [host.integer(folder, tile, "physical_vram_size_bytes") for tile in tiles]
    folders = [f"{folder}/drm/{name}" for name in host.names(folder, "drm") if re.match(r"^card[0-9]+$", name)]
    if not folders and os.path.basename(folder) == "device":
        folders = [os.path.dirname(folder)]
    sizes += [host.integer(card, "lmem_total_bytes") for card in folders]
    total = sum(size for size in sizes if size is not None and 0 < size < LARGEST)
    return total if 0 < total < LARGEST else None


def _watts(host: Host, folder: str, names: Tuple[str, ...]) -> Optional[float]:
    """Return the first limit that is set; 0 means that it is off."""
    for sensor in host.names(folder, "hwmon"):
        for name in names:
            microwatts = host.integer(folder, "hwmon", sensor, name)
            if microwatts is not None and 0 < microwatts < LARGEST:
                return microwatts / 1e6
    return None
