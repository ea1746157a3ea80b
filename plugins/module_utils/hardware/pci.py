# SPDX-License-Identifier: Apache-2.0
"""GPUs on the PCI bus, as sysfs lists them before any driver is there."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Collection, Dict, List, NamedTuple, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import chips
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    PCIE_KEYS,
    Device,
    bus_id,
    new_device,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

PCI_DEVICES = "sys/bus/pci/devices"
NVIDIA = 0x10DE
VENDOR_IDS = {NVIDIA: "nvidia", 0x1002: "amd", 0x8086: "intel"}
DISPLAY_CLASSES = (0x0300, 0x0302, 0x0380)
# Accelerators without a display (MI300); Intel's devices of this class are NPUs.
ACCELERATOR_CLASS = 0x1200
BRIDGE_CLASS = 0x0604
# The switch of MI300 has the ids of AMD's processors, whose chipsets have switches as well.
INSTINCT_PORTS = ((0x1022, 0x1500), (0x1022, 0x1501))
# NVSwitches are "other bridges".
NVSWITCH_CLASS = 0x0680
ID_KEYS = ("vendor_id", "device_id", "subsystem_vendor_id", "subsystem_device_id", "class", "revision")
NO_IDS: Dict[str, Optional[str]] = dict.fromkeys(ID_KEYS)
# The kernel's largest, CONFIG_NODES_SHIFT of 10.
MAX_NUMA_NODES = 1 << 10
PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "var/lib/pciutils/pci.ids")
# The rates of the PCI Express generations, in GT/s, as sysfs spells them (older kernels write "8 GT/s").
GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6, 128.0: 7}
# Link widths that the kernel prints when it does not know: 0, and all ones of a device that does not answer.
NO_WIDTH = (0, 63, 255)


class Bus(NamedTuple):
    """What is on the PCI bus: the GPUs, and how many NVSwitches (None when there is no PCI tree)."""

    devices: List[Device]
    nvswitches: Optional[int]


def collect(host: Host) -> Bus:
    """Return one record for each GPU of a known vendor, with `generation` by the chip's PCI id.

    Both class and vendor decide: by vendor alone NVSwitches, HDMI audio and chipsets would count, by class alone
    the graphics of a management controller would. A virtual function whose physical function is here is left out.
    """
    names = host.names(PCI_DEVICES)
    addresses = {bus_id(name) for name in names}
    devices = []
    switches = 0
    for name in names:
        folder = f"{PCI_DEVICES}/{name}"
        uevent = uevent_of(host, folder)
        device = _record(host, folder, bus_id(name), addresses, uevent)
        if device is not None:
            devices.append(device)
        elif _kind(host, folder, uevent) == (NVIDIA, NVSWITCH_CLASS):
            switches += 1
    return Bus(devices, switches if host.exists(PCI_DEVICES) else None)


def read(host: Host, folder: str, address: Optional[str], known: Collection[Optional[str]]) -> Optional[Device]:
    """Return the record of the device in `folder` (relative to the root), None when it is no GPU.

    `known` are the addresses of the bus: a virtual function of one of them is no device of its own.
    """
    return _record(host, folder, address, known, uevent_of(host, folder))


def _record(
    host: Host, folder: str, address: Optional[str], known: Collection[Optional[str]], uevent: Dict[str, str]
) -> Optional[Device]:
    vendor_id, pci_class = _kind(host, folder, uevent)
    vendor = VENDOR_IDS.get(vendor_id or 0)
    if address is None or vendor is None or not _is_gpu(vendor, pci_class):
        return None
    physical = host.link(folder, "physfn")
    if physical is not None and bus_id(physical) in known:
        return None
    ids = _ids(host, folder, uevent)
    power_state = _word(host, r"^[a-z]+$", folder, "power", "runtime_status")
    # Kernels since 2025 power a device up to read its link.
    asleep = power_state == "suspended" and not host.wake
    device_id = to_int("0x" + (ids["device_id"] or ""))
    chip = None if device_id is None else chips.identify(vendor, device_id)
    numa_node = host.integer(folder, "numa_node")
    return new_device(
        vendor,
        address,
        pci=ids,
        generation=chip.generation if chip else None,
        driver_bound=host.link(folder, "driver") or uevent.get("DRIVER") or None,
        numa_node=numa_node if numa_node is not None and 0 <= numa_node < MAX_NUMA_NODES else None,
        cpu_affinity=_word(host, r"^[0-9][0-9,-]*$", folder, "local_cpulist"),
        render_node=render_node(host, folder),
        power_state=power_state,
        virtualization=None if physical is None else "sriov_vf",
        pcie=dict.fromkeys(PCIE_KEYS) if asleep else _link(host, folder, vendor, chip),
        folder=folder,
    )


def product_name(host: Host, device: Device) -> Optional[str]:
    """Return the product's name in the machine's pci.ids, else its vendor and PCI id, None without an id."""
    ids = device["pci"] or {}
    vendor_id, device_id = ids.get("vendor_id"), ids.get("device_id")
    if not vendor_id or not device_id:
        return None
    pattern = re.compile(f"^\t{device_id}  (.*)$".encode(), re.MULTILINE)
    for path in PCI_IDS:
        try:
            match = pattern.search(_vendor_block(host.path(path), vendor_id, os.stat(host.path(path)).st_mtime_ns))
        except OSError:
            continue
        if match:
            return match.group(1).decode("utf-8", "replace").strip() or None
    return f"{device['vendor']} {vendor_id}:{device_id}"


def uevent_of(host: Host, folder: str) -> Dict[str, str]:
    """Return what the kernel announced about the device in `folder`."""
    lines = (host.text(folder, "uevent") or "").splitlines()
    return {key.strip(): value.strip() for key, found, value in (line.partition("=") for line in lines) if found}


def render_node(host: Host, folder: str) -> Optional[str]:
    """Return the device node of the first render node below `folder`."""
    nodes = [node for node in host.names(folder, "drm") if re.match(r"^renderD[0-9]+$", node)]
    return f"/dev/dri/{nodes[0]}" if nodes else None


@lru_cache(maxsize=len(VENDOR_IDS))
def _vendor_block(path: str, vendor_id: str, _changed: int) -> bytes:
    """Return the vendor's part of a pci.ids file; the file is large, and equal GPUs ask for the same."""
    with open(path, "rb") as stream:
        data = stream.read()
    _, found, rest = data.partition(f"\n{vendor_id}  ".encode())
    end = re.search(rb"\n[^\t#\n]", rest)
    return (rest[: end.start()] if end else rest) if found else b""


def _ids(host: Host, folder: str, uevent: Dict[str, str]) -> Dict[str, Optional[str]]:
    """Each number has a file of its own; where only `uevent` is there, that has all but the revision."""
    vendor, _, device = uevent.get("PCI_ID", "").partition(":")
    subsystem_vendor, _, subsystem_device = uevent.get("PCI_SUBSYS_ID", "").partition(":")
    return {
        "vendor_id": _hex(host, folder, "vendor", vendor),
        "device_id": _hex(host, folder, "device", device),
        "subsystem_vendor_id": _hex(host, folder, "subsystem_vendor", subsystem_vendor),
        "subsystem_device_id": _hex(host, folder, "subsystem_device", subsystem_device),
        "class": _hex(host, folder, "class", uevent.get("PCI_CLASS", ""), 6),
        "revision": _hex(host, folder, "revision", "", 2),
    }


def _word(host: Host, pattern: str, *path: str) -> Optional[str]:
    text = host.text(*path) or ""
    return text if re.match(pattern, text) else None


def _hex(host: Host, folder: str, name: str, announced: str, digits: int = 4) -> Optional[str]:
    for number in (host.integer(folder, name), to_int("0x" + announced)):
        if number is not None and 0 <= number < 16**digits:
            return f"{number:0{digits}x}"
    return None


def _kind(host: Host, folder: str, uevent: Dict[str, str]) -> Tuple[Optional[int], Optional[int]]:
    """Return vendor and class, the latter without the programming interface (its last two digits).

    A server has hundreds of devices on the bus, so one file has to do for those that are no GPU.
    """
    vendor_id = to_int("0x" + uevent.get("PCI_ID", "").partition(":")[0])
    pci_class = to_int("0x" + uevent.get("PCI_CLASS", ""))
    if vendor_id is None:
        vendor_id = host.integer(folder, "vendor")
    if pci_class is None:
        pci_class = host.integer(folder, "class")
    return vendor_id, None if pci_class is None else pci_class >> 8


def _is_gpu(vendor: str, pci_class: Optional[int]) -> bool:
    return pci_class in DISPLAY_CLASSES or (pci_class == ACCELERATOR_CLASS and vendor != "intel")


def _link(host: Host, folder: str, vendor: str, chip: Optional[chips.Chip]) -> Dict[str, Optional[int]]:
    """Return the generation and width of the link to the slot.

    Intel's cards and many of AMD's have a switch on them: what the GPU itself tells is the link inside the card (for
    Intel always 2.5 GT/s and one lane), and the one to the slot is that of the switch's upstream port. Without that,
    and for a GPU in a processor, it is unknown.
    """
    inside = vendor == "intel" or (vendor == "amd" and chip is not None and (chip.integrated or _switched(chip)))
    source = _upstream_port(host, folder, vendor) or (None if inside else folder)
    return {
        "generation_max": _generation(host, source, "max_link_speed"),
        "generation_current": _generation(host, source, "current_link_speed"),
        "width_max": _width(host, source, "max_link_width"),
        "width_current": _width(host, source, "current_link_width"),
    }


def _switched(chip: chips.Chip) -> bool:
    """Say whether all cards with this AMD chip have a switch: from Vega on. Instinct's is as fast as its slot."""
    return chip.generation == "gcn5" or chip.generation.startswith("rdna")


def _upstream_port(host: Host, folder: str, vendor: str) -> Optional[str]:
    """Return where the upstream port of the card's own switch lies: two bridges above the GPU.

    The root port above them is none of them, even when it is of the same vendor.
    """
    downstream = os.path.dirname(os.path.realpath(host.path(folder)))
    upstream = os.path.dirname(downstream)
    if not all(bus_id(os.path.basename(path)) for path in (downstream, upstream, os.path.dirname(upstream))):
        return None
    root = os.path.realpath(host.root)
    for path in (downstream, upstream):
        bridge = os.path.relpath(path, root)
        ids = (host.integer(bridge, "vendor"), host.integer(bridge, "device"))
        own = VENDOR_IDS.get(ids[0] or 0) == vendor or (vendor == "amd" and ids in INSTINCT_PORTS)
        if not own or (host.integer(bridge, "class") or 0) >> 8 != BRIDGE_CLASS:
            return None
    return os.path.relpath(upstream, root)


def _generation(host: Host, folder: Optional[str], name: str) -> Optional[int]:
    match = re.match(r"^([0-9]{1,3}(?:\.[0-9])?) GT/s", (host.text(folder, name) or "") if folder else "")
    return GENERATIONS.get(float(match.group(1))) if match else None


def _width(host: Host, folder: Optional[str], name: str) -> Optional[int]:
    width = host.integer(folder, name) if folder else None
    return width if width is not None and 0 < width < 256 and width not in NO_WIDTH else None
