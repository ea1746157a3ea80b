# SPDX-License-Identifier: Apache-2.0
"""Intel's machines, and what vulkaninfo printed.

The tables fill their lines (`fmt: off`): a recording is read at a glance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .adapters import sysfs_tree, xpu_discovery
from .expected import Has, OneOf, Row, Values, intel, maybe

XE_HPG, XE2 = "xe-hpg", "xe2"
# The endpoint's own link is the card's inside; it says 2.5 GT/s x1, which no file of these trees corrects.
INNER_LINK: Values = {"pcie__generation_max": None, "pcie__width_max": None}
LACT = "intel/sysfs-lact/"
# fmt: off
ROWS = (
    Row(
        LACT + "a380-i915/", sysfs_tree,
        intel("b", XE_HPG, None, ids="8086:56a5", generation="alchemist", driver_bound="i915", integrated=False), 1,
        note="no memory files",
    ),
    Row(
        LACT + "a380-xe/", sysfs_tree,
        intel(
            "8", XE_HPG, None, ids="8086:56a5 1849:6004 030000 05", generation="alchemist", driver_bound="xe",
            integrated=False, numa_node=None, cpu_affinity="0-15", power_state="active", **INNER_LINK,
        ),
        1, note="no memory files",
    ),
    Row(
        LACT + "b580/", sysfs_tree,
        intel(
            "9", XE2, None, ids="8086:e20b 8086:1100 030000 00", generation="battlemage", driver_bound="xe",
            integrated=False, numa_node=None, cpu_affinity="0-15", power_state="active",
            power__limit_watts=maybe(190), **INNER_LINK,
        ),
        1, note="no memory files",
    ),
    Row(
        LACT + "cometlake/", sysfs_tree,
        intel(
            "0:2", OneOf((None, "gen9", "gen9.5", "gen9p5")), None, ids="8086:9b41", driver_bound="i915",
            integrated=True, unified_memory=True, usable=False, unusable_reason=Has("integrated"),
            pcie__generation_max=None, pcie__width_max=None,
        ),
        0, note="a link of Unknown speed and no lanes",
    ),
    Row(
        "intel/xpu-smi/ats-discovery.json", xpu_discovery,
        intel("4d", OneOf((None, "xe-hp", "xe-hpg")), None, ids="8086:020a", driver_bound="i915"), 1,
        note="a prototype; the discovery as the tree of its device",
    ),
    Row(
        "intel/xpu-smi/arc-pro-b60-discovery-excerpt.json", xpu_discovery,
        intel("3", XE2, 25669140480, ids="8086:e211", generation="battlemage", integrated=False), 1,
        note="the address is made up, the excerpt has none",
    ),
)
# fmt: on


@dataclass(frozen=True)
class Drivers:
    """One recorded vulkaninfo: the GPUs that are left of it, what Vulkan says of each, and how many are usable."""

    path: str
    vendors: Any
    usable: int
    devices: tuple[Values, ...]
    architectures: tuple[Any, ...] = ()


# fmt: off
VULKAN = (
    Drivers(
        "vulkan/rx6600xt-amdvlk-summary.txt", ["amd"], 1,
        (
            {
                "name": "AMD Radeon RX 6600 XT", "type": Has("discrete"), "vendor_id": "1002", "device_id": "73ff",
                "api_version": "1.3.260", "driver": Has("AMD proprietary"),
                "uuid": maybe("00000000-0a00-0000-0000-000000000000"), "pci_bus_id": maybe("0000:0a:00.0"),
            },
        ),
        ("gfx1032",),
    ),
    Drivers(
        "vulkan/amd6700xt-gtx1650-duplicate-icds.txt", ["nvidia", "amd"], 2,
        (
            {"name": Has("NAVY_FLOUNDER"), "driver": Has("Mesa")},
            {"name": "NVIDIA GeForce GTX 1650", "driver": Has("470.103.01")},
        ),
        (maybe("7.5"), maybe("gfx1031")),
    ),
    Drivers(
        "vulkan/rtx3070-laptop-properties.txt", ["nvidia"], 1,
        (
            {
                "name": "NVIDIA GeForce RTX 3070 Laptop GPU", "type": Has("discrete"), "vendor_id": "10de",
                "device_id": "24dd", "api_version": "1.3.236",
            },
        ),
        ("8.6",),
    ),
    Drivers("vulkan/rpi400-llvmpipe-only.txt", [], 0, ()),
    Drivers(
        "vulkan/qualcomm-x1-igpu.txt", OneOf(([], ["qualcomm"])), 0,
        (
            {
                "name": "Qualcomm(R) Adreno(TM) X1-85 GPU", "type": Has("integrated"), "vendor_id": "5143",
                "device_id": "36334330", "api_version": "1.3.295", "driver": Has("Qualcomm"),
            },
        ),
    ),
)
# fmt: on

LEFT_OUT = {
    "INDEX.md": "the list of the recordings",
    "nvidia/errors/errors.json": "failures of tools; each is replayed on its own",
    "nvidia/errors/nvidia-smi-return-codes.txt": "a list of return codes",
    "amd/debugfs/vega20-amdgpu_firmware_info.txt": "versions of a GPU's firmware, nothing of the GPU",
    "intel/xpu-smi/topology-matrix-2card-2tile.txt": "how tiles are linked: neither ids nor addresses nor memory",
    "intel/xpu-smi/xe-vram-sysfs-notes.txt": "notes on where the drivers show memory",
}
