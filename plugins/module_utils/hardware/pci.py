# SPDX-License-Identifier: Apache-2.0
"""GPUs on the PCI bus, as sysfs lists them before any driver is there."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, bus_id, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

PCI_DEVICES = "sys/bus/pci/devices"
VENDOR_IDS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
DISPLAY_CLASSES = (0x0300, 0x0302, 0x0380)
# Accelerators without a display (MI300); Intel's devices of this class are NPUs.
ACCELERATOR_CLASS = 0x1200
PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


def collect(host: Host) -> List[Device]:
    """Return one record for each GPU of a known vendor.

    Both class and vendor decide: by vendor alone NVSwitches, HDMI audio and chipsets would count, by class alone
    the graphics of a management controller would. A virtual function whose physical function is here is left out.
    """
    devices: List[Device] = []
    for name in host.names(PCI_DEVICES):
        address = bus_id(name)
        uevent = _uevent(host, name)
        vendor_id, device_id = _ids(host, name, uevent)
        vendor = VENDOR_IDS.get(vendor_id) if vendor_id is not None else None
        if address is None or vendor is None or not _is_gpu(vendor, _class(host, name, uevent)):
            continue
        if host.link(PCI_DEVICES, name, "physfn") is not None:
            continue
        numa_node = host.integer(PCI_DEVICES, name, "numa_node")
        devices.append(
            new_device(
                vendor,
                address,
                driver_bound=host.link(PCI_DEVICES, name, "driver") or uevent.get("DRIVER"),
                numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
                render_node=_render_node(host, name),
                device_id=device_id,
            )
        )
    return devices


def product_name(host: Host, vendor: str, device_id: Optional[int]) -> Optional[str]:
    """Return the product's name in the machine's pci.ids, else its vendor and PCI id, None without an id."""
    if device_id is None:
        return None
    vendor_id = next(number for number, known in VENDOR_IDS.items() if known == vendor)
    for path in PCI_IDS:
        text = host.text(path)
        if not text:
            continue
        _, found, block = text.partition(f"\n{vendor_id:04x}  ")
        for line in block.split("\n")[1:] if found else []:
            if line[:1] not in ("\t", "#", ""):
                break
            if line.startswith(f"\t{device_id:04x}  "):
                return line[7:].strip()
    return f"{vendor} {vendor_id:04x}:{device_id:04x}"


def _uevent(host: Host, name: str) -> Dict[str, str]:
    text = host.text(PCI_DEVICES, name, "uevent") or ""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _ids(host: Host, name: str, uevent: Dict[str, str]) -> Tuple[Optional[int], Optional[int]]:
    vendor, _, device = uevent.get("PCI_ID", "").partition(":")
    vendor_id = host.integer(PCI_DEVICES, name, "vendor")
    device_id = host.integer(PCI_DEVICES, name, "device")
    return (
        vendor_id if vendor_id is not None else to_int("0x" + vendor),
        device_id if device_id is not None else to_int("0x" + device),
    )


def _class(host: Host, name: str, uevent: Dict[str, str]) -> Optional[int]:
    """Return the class with its subclass, without the programming interface (the last two digits)."""
    number = host.integer(PCI_DEVICES, name, "class")
    if number is None:
        number = to_int("0x" + uevent.get("PCI_CLASS", ""))
    return None if number is None else number >> 8


def _is_gpu(vendor: str, pci_class: Optional[int]) -> bool:
    return pci_class in DISPLAY_CLASSES or (pci_class == ACCELERATOR_CLASS and vendor != "intel")


def _render_node(host: Host, name: str) -> Optional[str]:
    nodes = [node for node in host.names(PCI_DEVICES, name, "drm") if node.startswith("renderD")]
    return f"/dev/dri/{nodes[0]}" if nodes else None
