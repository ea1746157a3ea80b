# SPDX-License-Identifier: Apache-2.0
"""Vulkan: what vulkaninfo says of each GPU, and the GPUs that nothing else tells of."""

from __future__ import annotations

import re
import struct
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import chips, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    INTEGRATED_REASON,
    Device,
    bus_id,
    new_device,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Command, Host, Outcome, to_int

# Khronos's registry: PCI vendor ids, and 0x10000 and up for vendors that have none.
VENDOR_IDS = {
    0x10DE: "nvidia",
    0x1002: "amd",
    0x8086: "intel",
    0x5143: "qualcomm",
    0x13B5: "arm",
    0x14E4: "broadcom",
    0x1010: "imagination",
    0x106B: "apple",
}
# By name, where a shortened output has no vendor id, or the id is that of the driver's author.
VENDOR_NAMES = (
    (r"nvidia|geforce|quadro|\bnvk\b", "nvidia"),
    (r"\bamd\b|radv|radeon", "amd"),
    (r"intel", "intel"),
    (r"qualcomm|adreno|turnip", "qualcomm"),
    (r"\bmali\b|immortalis|panfrost", "arm"),
    (r"broadcom|videocore|\bv3d", "broadcom"),
    (r"powervr|imagination", "imagination"),
    (r"\bapple\b", "apple"),
)
SOFTWARE = re.compile(r"llvmpipe|lavapipe|swiftshader|softpipe|basic render", re.IGNORECASE)
FIELDS = frozenset(
    (
        "apiVersion",
        "vendorID",
        "deviceID",
        "deviceType",
        "deviceName",
        "driverName",
        "driverInfo",
        "deviceUUID",
        "pciDomain",
        "pciBus",
        "pciDevice",
        "pciFunction",
    )
)
# The vendors whose GPUs are always part of a processor.
EMBEDDED = frozenset(("qualcomm", "arm", "broadcom", "imagination", "apple"))
PUBLIC = ("name", "type", "vendor_id", "device_id", "driver", "api_version", "uuid", "pci_bus_id")
INTEL = 0x8086
LARGEST = 1 << 62
# What is longer than this is no name, and slow to look at.
LONGEST = 250
# What the loader says when there is no driver for any GPU.
NO_DRIVER = "ERROR_INCOMPATIBLE_DRIVER"

_VERSION = re.compile(r"^[ \t]*Vulkan (?:Instance|API) Version:[ \t]*([0-9]+(?:\.[0-9]+)+)", re.MULTILINE)
_GPU = re.compile(r"^GPU([0-9]{1,4}):?[ \t\r]*$", re.MULTILINE)
_HEAP = re.compile(r"^[ \t]*memoryHeaps\[[0-9]+\]:")
# The few lines that matter, of tens of thousands.
_LINES = re.compile(
    r"^(?:GPU[0-9]{1,4}:?[ \t\r]*|[ \t]*(?:(?:%s|size)[ \t]*=|memoryHeaps\[|MEMORY_HEAP_DEVICE_LOCAL_BIT).*)$"
    % "|".join(sorted(FIELDS)),
    re.MULTILINE,
)
# RADV once named the compiler behind the name of the chip.
_COMPILER = re.compile(r"(?:\s*\((?:ACO|LLVM[^)]*)\))+$")
_COMMENT = re.compile(r"(?:\s*\([^()]*\))+$")

Instance = Dict[str, Any]


class Pending(NamedTuple):
    """What `start` began: the text of a recorded output, or a running program, or why nobody is asked."""

    text: Optional[str] = None
    path: Optional[str] = None
    command: Optional[Command] = None
    skipped: Optional[Outcome] = None


def start(host: Host, devices: List[Device], path: Optional[str] = None) -> Pending:
    """Read the recorded output at `path`, else start vulkaninfo where it tells something and wakes no GPU.

    The long form is asked: unlike `--summary` it has the PCI addresses and the sizes of the memory.
    """
    if path is not None:
        try:
            with open(path, "rb") as stream:
                return Pending(text=stream.read().decode("utf-8", "replace").replace("\0", ""), path=path)
        except (OSError, ValueError) as problem:
            return Pending(skipped=Outcome("error", f"{path} cannot be read: {problem}"))
    reason = _unasked(host, devices)
    if reason is not None:
        return Pending(skipped=Outcome("absent", f"not asked: {reason}"))
    return Pending(command=host.start("vulkaninfo"))


def _unasked(host: Host, devices: List[Device]) -> Optional[str]:
    nodes = any(name.startswith("renderD") for name in host.names("dev/dri"))
    if not any(device["vendor"] in ("amd", "intel") for device in devices) and (devices or not nodes):
        return "no GPU that is used through Vulkan"
    if not host.wake and any(device["power_state"] == "suspended" for device in devices):
        return "it would wake a GPU that is asleep"
    return None


def finish(pending: Pending, host: Host, devices: List[Device]) -> Optional[Dict[str, Any]]:
    """Return `version` and `devices` of the Vulkan installation, None when it is not known, and report the probe.

    The GPUs in `devices` get their `vulkan`; one of a vendor that no other source tells of is added.
    """
    outcome = pending.skipped or (pending.command.finish() if pending.command else Outcome("ok"))
    text = outcome.stdout if pending.text is None else pending.text
    version, found = parse(text)
    status, message = outcome.status, outcome.message
    answered = version is not None or _GPU.search(text) is not None
    if status == "ok" and not answered:
        status, message = "error", f"{pending.path or 'vulkaninfo'} gives no output of vulkaninfo"
    elif status == "error" and NO_DRIVER in outcome.stdout + outcome.stderr:
        status, message = "absent", "no GPU has a Vulkan driver"
    host.report.probe("vulkaninfo", status, message, outcome.ms)
    if not answered:
        return None
    instances = _distinct(found)
    _assign(host, devices, instances)
    return {"version": version, "devices": [{key: one[key] for key in PUBLIC} for one in instances]}


def parse(text: str) -> Tuple[Optional[str], List[Instance]]:
    """Return the instance's version and one entry for each GPU of vulkaninfo's output, long or `--summary`.

    Software devices are left out. An entry has `name`, `type`, `vendor_id`, `device_id` (hexadecimal), `driver`,
    `api_version`, `uuid`, `pci_bus_id`, and besides `vendor` and `memory_bytes`; what is not printed is None.
    """
    version = _VERSION.search(text)
    blocks: Dict[str, Dict[str, Any]] = {}
    block: Optional[Dict[str, Any]] = None
    for line in _LINES.findall(text):
        start_of_gpu = _GPU.match(line)
        if start_of_gpu:
            # Some outputs list a GPU twice, in short and in full.
            block = blocks.setdefault(start_of_gpu.group(1), {"heaps": []})
            continue
        if block is None:
            continue
        key, found, value = (part.strip() for part in line.partition("="))
        heaps = block["heaps"]
        if _HEAP.match(line):
            heaps.append({"size": None, "local": False})
        elif found and key in FIELDS:
            block.setdefault(key, value[:LONGEST])
        elif found and key == "size" and heaps and heaps[-1]["size"] is None:
            heaps[-1]["size"] = to_int(value.partition(" ")[0])
        elif "MEMORY_HEAP_DEVICE_LOCAL_BIT" in line and heaps:
            heaps[-1]["local"] = True
    entries = [_entry(block) for block in blocks.values()]
    return version.group(1) if version else None, [entry for entry in entries if entry is not None]


def _entry(block: Dict[str, Any]) -> Optional[Instance]:
    name = block.get("deviceName")
    kind = re.search(r"(DISCRETE|INTEGRATED|VIRTUAL|OTHER|CPU)(?:_GPU)?$", block.get("deviceType", ""))
    if not name or SOFTWARE.search(name) or (kind and kind.group(1) == "CPU"):
        return None
    vendor_id, device_id = _id(block.get("vendorID")), _id(block.get("deviceID"))
    vendor = _vendor(vendor_id, name)
    uuid = block.get("deviceUUID", "").lower()
    uuid = uuid if re.match(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", uuid) and uuid.strip("0-") else None
    version = re.search(r"[0-9]+\.[0-9]+\.[0-9]+", block.get("apiVersion", ""))
    return {
        "name": _COMPILER.sub("", name) or name,
        "type": kind.group(1).lower() if kind else None,
        "vendor_id": None if vendor_id is None else f"{vendor_id:04x}",
        "device_id": None if device_id is None else f"{device_id:04x}",
        "driver": " ".join(filter(None, (block.get("driverName"), block.get("driverInfo")))) or None,
        "api_version": version.group(0) if version else None,
        "uuid": uuid,
        "pci_bus_id": _printed_address(block) or _address(vendor, uuid),
        "vendor": vendor,
        "memory_bytes": _memory(vendor, block["heaps"]),
    }


def _id(text: Optional[str]) -> Optional[int]:
    number = to_int((text or "").partition(" ")[0])
    return number if number is not None and 0 <= number < 1 << 32 else None


def _vendor(vendor_id: Optional[int], name: str) -> str:
    if vendor_id in VENDOR_IDS:
        return VENDOR_IDS[vendor_id]
    return next((vendor for pattern, vendor in VENDOR_NAMES if re.search(pattern, name, re.IGNORECASE)), "other")


def _printed_address(block: Dict[str, Any]) -> Optional[str]:
    texts = [block.get(key) for key in ("pciDomain", "pciBus", "pciDevice", "pciFunction")]
    numbers = [number for number in map(_id, texts) if number is not None]
    return bus_id("{:x}:{:x}:{:x}.{:x}".format(*numbers)) if len(numbers) == len(texts) else None


def _address(vendor: str, uuid: Optional[str]) -> Optional[str]:
    """Return the PCI address in a deviceUUID.

    AMD's drivers (Mesa's and AMD's own) put domain, bus, device and function into four 32-bit words; Intel's the ids
    of the vendor, the device and the revision and the domain into four 16-bit words, the rest into the bytes after.
    """
    data = bytes.fromhex((uuid or "").replace("-", ""))
    if not data:
        return None
    if vendor == "amd":
        return bus_id("{:x}:{:x}:{:x}.{:x}".format(*struct.unpack("<4I", data)))
    words, rest = struct.unpack("<4H", data[:8]), struct.unpack("<3B", data[8:11])
    if vendor == "intel" and words[0] == INTEL:
        return bus_id("{:x}:{:x}:{:x}.{:x}".format(words[3], *rest))
    return None


def _memory(vendor: str, heaps: List[Dict[str, Any]]) -> Optional[int]:
    """Return the memory on the card. NVIDIA lists the part that the host sees once more, others beside the rest."""
    sizes = [heap["size"] for heap in heaps if heap["local"] and heap["size"] is not None and heap["size"] > 0]
    total = sum(sizes) if vendor in ("amd", "intel") else max(sizes, default=0)
    return total if 0 < total < LARGEST else None


def _distinct(found: List[Instance]) -> List[Instance]:
    """Leave out the GPUs that a second driver lists again.

    The address says which they are, else the UUID; without both two entries with the same name are two cards when one
    driver lists both, and one card when two drivers do.
    """
    kept: Dict[Tuple[Any, ...], Instance] = {}
    seen: Dict[Tuple[Any, ...], int] = {}
    for one in found:
        key: Tuple[Any, ...] = ("address", one["pci_bus_id"])
        if one["pci_bus_id"] is None:
            key = ("uuid", one["uuid"])
        if key[1] is None:
            what = (one["vendor"], one["device_id"], _COMMENT.sub("", one["name"]).lower())
            listed = (*what, one["driver"])
            seen[listed] = seen.get(listed, -1) + 1
            key = ("name", *what, seen[listed])
        known = kept.setdefault(key, one)
        for field, value in one.items():
            if known[field] is None:
                known[field] = value
    return list(kept.values())


def _assign(host: Host, devices: List[Device], instances: List[Instance]) -> None:
    """Give each GPU its entry: by address or UUID, else by the PCI ids, else by the vendor where there are no ids."""
    vendors = {device["vendor"] for device in devices}
    left = list(instances)
    taken: Set[int] = set()
    for same in (_same_identity, _same_ids, _same_vendor):
        for one in list(left):
            for position, device in enumerate(devices):
                if position not in taken and same(device, one):
                    taken.add(position)
                    left.remove(one)
                    _complete(device, one)
                    break
    # A card that the kernel lists is not counted again because of a driver that tells of it in its own way.
    devices.extend(_device(host, one) for one in left if one["vendor"] not in vendors)


def _same_identity(device: Device, one: Instance) -> bool:
    if one["pci_bus_id"] is not None and one["pci_bus_id"] == device["pci_bus_id"]:
        return True
    return one["uuid"] is not None and device["uuid"] == f"GPU-{one['uuid']}"


def _same_ids(device: Device, one: Instance) -> bool:
    ids = device["pci"] or {}
    return (
        one["device_id"] is not None
        and ids.get("device_id") == one["device_id"]
        and ids.get("vendor_id") == one["vendor_id"]
        and None in (one["pci_bus_id"], device["pci_bus_id"])
    )


def _same_vendor(device: Device, one: Instance) -> bool:
    ids = device["pci"] or {}
    return (
        device["vendor"] == one["vendor"]
        and None in (one["device_id"], ids.get("device_id"))
        and None in (one["pci_bus_id"], device["pci_bus_id"])
    )


def _complete(device: Device, one: Instance) -> None:
    device["vulkan"] = {key: one[key] for key in ("name", "driver", "api_version")}
    one["pci_bus_id"] = one["pci_bus_id"] or device["pci_bus_id"]
    if device["memory_total_bytes"] is None and not device["unified_memory"]:
        device["memory_total_bytes"] = one["memory_bytes"]


def _device(host: Host, one: Instance) -> Device:
    vendor = one["vendor"]
    number = to_int("0x" + (one["device_id"] or ""))
    chip = None if number is None else chips.identify(vendor, number)
    on_bus = vendor in pci.VENDOR_IDS.values() and None not in (one["vendor_id"], number)
    integrated = one["type"] == "integrated" or vendor in EMBEDDED or bool(chip and chip.integrated)
    device = new_device(
        vendor,
        one["pci_bus_id"],
        name=one["name"],
        uuid=f"GPU-{one['uuid']}" if vendor == "nvidia" and one["uuid"] else None,
        architecture=chip.architecture if chip else None,
        generation=chip.generation if chip else None,
        pci=dict(pci.NO_IDS, vendor_id=one["vendor_id"], device_id=one["device_id"]) if on_bus else None,
        integrated=integrated,
        unified_memory=integrated,
        usable=host.integrated or not integrated,
        unusable_reason=INTEGRATED_REASON if integrated and not host.integrated else None,
    )
    _complete(device, one)
    return device
