# SPDX-License-Identifier: Apache-2.0
"""What amd-smi and rocm-smi print as JSON. Their keys, types and units changed from version to version."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, bus_id, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.kfd import LIMIT, uuid_of

AMD_SMI = "amd_smi"
ROCM_SMI = "rocm_smi"
# What they are asked; rocm-smi has no single option for all that is wanted.
AMD_SMI_COMMAND = ("amd-smi", "static", "--json")
ROCM_SMI_COMMAND = (
    *("rocm-smi", "--showproductname", "--showbus", "--showid", "--showuniqueid"),
    *("--showmeminfo", "vram", "--showdriverversion", "--json"),
)
# What tells that an object is amd-smi's of a GPU
GPU_KEYS = {"gpu", "asic", "bus", "vram", "partition"}
# amd-smi says MB and means MiB.
SCALES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
# Some versions of rocm-smi print minor and stepping of gfx90a and gfx90c in decimal.
DECIMAL_TARGET = re.compile(r"^gfx(9[0-9])(1[0-5])$")
# A document starts a line; lines before it are warnings. More starts than this are no document.
STARTS_LIMIT = 20


def parse(text: str) -> Tuple[str, List[Device], Optional[str]]:
    """Return which tool's output `text` is (`amd_smi` or `rocm_smi`), a record for each card, and the driver's version.

    Lines around the document are skipped, since both tools print warnings. A record without a PCI address has
    `pci_bus_id` None. Values that make no sense are unknown. Raises ValueError when there is no document of either.
    """
    for document in _documents(text):
        gpus = document.get("gpu_data") if isinstance(document, dict) else document
        # Before version 26 the list was the document.
        if isinstance(gpus, list):
            found = [gpu for gpu in gpus if isinstance(gpu, dict) and GPU_KEYS & set(gpu)]
            if found or isinstance(document, dict):
                return AMD_SMI, _cards([_amd_smi(gpu) for gpu in found]), _first(found, _amd_smi_driver)
        elif isinstance(document, dict):
            names = [name for name in document if re.match(r"^card[0-9]+$", name) and isinstance(document[name], dict)]
            if names:
                names.sort(key=lambda name: (len(name), name))
                system = _Lenient(document.get("system"))
                records = [_rocm_smi(_Lenient(document[name])) for name in names]
                return ROCM_SMI, _cards(records), _version(system.text("driver version"))
    raise ValueError("there is no document of amd-smi or rocm-smi in it")


def _documents(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    starts = re.finditer(r"^[ \t]*(?=[\[{])", text, re.MULTILINE)
    for match in itertools.islice(starts, STARTS_LIMIT):
        try:
            yield decoder.raw_decode(text, match.end())[0]
        except (ValueError, RecursionError):
            continue


class _Lenient:
    """An object of the document: its keys without regard to case, and values of any type taken for what they may be."""

    def __init__(self, content: Any) -> None:
        pairs = content.items() if isinstance(content, dict) else ()
        self.values: Dict[str, Any] = {str(key).lower().strip(" :"): value for key, value in pairs}

    def part(self, key: str) -> "_Lenient":
        return _Lenient(self.values.get(key))

    def text(self, *keys: str) -> Optional[str]:
        """Return the first value that says something."""
        for key in keys:
            value = self.values.get(key)
            clean = " ".join(value.split()) if isinstance(value, str) and value.isprintable() else ""
            if clean and clean.lower() not in ("n/a", "none", "unknown", "null"):
                return clean[:200]
        return None

    def number(self, *keys: str) -> Optional[float]:
        for key in keys:
            found = _number(self.values.get(key))
            if found is not None:
                return found
        return None

    def size(self, *keys: str) -> Optional[int]:
        """Return a size in bytes: {"value", "unit"}, "64 GB", or a bare number of MiB, which is amd-smi's unit."""
        for key in keys:
            value: Any = self.values.get(key)
            unit: Any = "MB"
            if isinstance(value, dict):
                value, unit = value.get("value"), value.get("unit", unit)
            elif isinstance(value, str) and len(value.split()) == 2:
                value, unit = value.split()
            number, scale = _number(value), SCALES.get(str(unit).upper())
            if number and scale and number * scale < LIMIT:
                return int(number * scale)
        return None

    def bytes(self, key: str, least: int = 1) -> Optional[int]:
        number = self.number(key)
        return int(number) if number is not None and number >= least else None

    def quantity(self, *keys: str) -> Optional[float]:
        """Return a number that may come with a unit."""
        for key in keys:
            value = self.values.get(key)
            found = _number(value.get("value") if isinstance(value, dict) else value)
            if found is not None:
                return found
        return None

    def hexadecimal(self, digits: int, *keys: str) -> Optional[str]:
        """Return the digits of an id that is written in hexadecimal."""
        for key in keys:
            match = re.match(r"^0x([0-9a-fA-F]{1,16})$", self.text(key) or "")
            if match and int(match.group(1), 16) < 16**digits:
                return f"{int(match.group(1), 16):0{digits}x}"
        return None


def _number(value: Any) -> Optional[float]:
    if isinstance(value, str) and re.match(r"^[0-9]{1,20}(\.[0-9]{1,9})?( *[A-Za-z/]{1,4})?$", value):
        value = float(re.sub(r"[^0-9.]", "", value)) if "." in value else int(re.sub(r"[^0-9]", "", value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Also what JSON has no word for: NaN and the infinities compare as false.
    return value if 0 <= value < LIMIT else None


def _whole(number: Optional[float], limit: int) -> Optional[int]:
    return int(number) if number is not None and 0 < number < limit else None


def _amd_smi(content: Dict[str, Any]) -> Device:
    gpu = _Lenient(content)
    asic, board, limit = gpu.part("asic"), gpu.part("board"), gpu.part("limit")
    # Newer versions have one part for each sensor of the package's power.
    package = limit.part("ppt0")
    partition, bus, numa = gpu.part("partition"), gpu.part("bus"), gpu.part("numa")
    umc = gpu.part("ras").part("ecc_block_state").text("umc")
    device = new_device(
        "amd",
        bus_id(bus.text("bdf") or gpu.text("bdf")),
        uuid=_uuid(asic.text("asic_serial")),
        name=asic.text("market_name") or board.text("product_name"),
        pci={
            "vendor_id": "1002",
            "device_id": asic.hexadecimal(4, "device_id"),
            "subsystem_vendor_id": asic.hexadecimal(4, "subvendor_id"),
            "subsystem_device_id": asic.hexadecimal(4, "subsystem_id"),
            "class": None,
            "revision": asic.hexadecimal(2, "rev_id"),
        },
        architecture=_target(asic.text("target_graphics_version")),
        compute_units=_whole(asic.number("num_compute_units"), 1 << 16),
        memory_total_bytes=gpu.part("vram").size("size"),
        numa_node=_node(numa.number("node")),
        partition=_partition(
            partition.text("accelerator_partition", "compute_partition", "accelerator_type"),
            partition.text("memory_partition", "memory"),
        ),
        virtualization="sriov_vf" if is_virtual(gpu.part("vbios").text("part_number", "name")) else None,
        driver_bound="amdgpu",
        # Both tools are ROCm's and list what amdgpu drives.
        kfd=True,
    )
    device["power"]["limit_watts"] = limit.quantity("socket_power") or package.quantity("socket_power_limit")
    device["power"]["max_limit_watts"] = limit.quantity("max_power") or package.quantity("max_power_limit")
    device["power"]["min_limit_watts"] = _known(limit.quantity("min_power"), package.quantity("min_power_limit"))
    device["pcie"]["width_max"] = _whole(bus.number("max_pcie_width"), 64)
    generation = re.match(r"^Gen ?([1-9])$", bus.text("pcie_interface_version") or "")
    device["pcie"]["generation_max"] = int(generation.group(1)) if generation else None
    device["ecc"]["mode"] = {"ENABLED": True, "DISABLED": False}.get((umc or "").upper())
    return device


def _amd_smi_driver(content: Dict[str, Any]) -> Optional[str]:
    # With the kernel's own driver some versions print the kernel's banner here.
    return _version(_Lenient(content).part("driver").text("version", "driver_version"))


def _rocm_smi(card: _Lenient) -> Device:
    # "Card model" was the subsystem's id, until "Subsystem ID" came and it became the device's.
    newer = "subsystem id" in card.values
    subsystem = card.hexadecimal(4, "subsystem id" if newer else "card model")
    names = [name for name in (card.text("card series"), card.text("device name"), card.text("card model")) if name]
    device = new_device(
        "amd",
        bus_id(card.text("pci bus")),
        uuid=_uuid(card.text("unique id")),
        # An old pci.ids makes it print ids in the place of names.
        name=next((name for name in names if not name.lower().startswith("0x")), None),
        pci={
            "vendor_id": "1002",
            "device_id": card.hexadecimal(4, "device id", "gpu id", *(["card model"] if newer else [])),
            "subsystem_vendor_id": None,
            # Where it was not found the vendor's id was printed.
            "subsystem_device_id": subsystem if subsystem != "1002" else None,
            "class": None,
            "revision": card.hexadecimal(2, "device rev"),
        },
        architecture=_target(card.text("gfx version")),
        memory_total_bytes=card.bytes("vram total memory (b)"),
        memory_used_bytes=card.bytes("vram total used memory (b)", 0),
        memory_bar_bytes=card.bytes("vis_vram total memory (b)"),
        gtt_bytes=card.bytes("gtt total memory (b)"),
        numa_node=_node(card.number("(topology) numa node")),
        partition=_partition(card.text("compute partition"), card.text("memory partition")),
        virtualization="sriov_vf" if is_virtual(card.text("vbios version")) else None,
        driver_bound="amdgpu",
        kfd=True,
    )
    limit = card.number("max graphics package power (w)") or None
    device["power"]["limit_watts"] = int(limit) if limit is not None and limit == int(limit) else limit
    return device


def _cards(records: List[Device]) -> List[Device]:
    """Return one record for each card: every partition is listed, each with the memory of the whole card."""
    found: List[Device] = []
    groups: Dict[Any, List[Device]] = {}
    for record in records:
        address = record["pci_bus_id"]
        key = (address[:-1], record["uuid"]) if address else (len(found), None)
        if key not in groups:
            found.append(record)
        groups.setdefault(key, []).append(record)
    for members in groups.values():
        first = members[0]
        if len(members) > 1:
            first["pci_bus_id"] = min(member["pci_bus_id"] for member in members)
            units = [member["compute_units"] for member in members if member["compute_units"]]
            first["compute_units"] = sum(units) or None
            first["partition"] = {**(first["partition"] or {"compute": None, "memory": None, "instances": []})}
            first["partition"]["count"] = len(members)
    return found


def _partition(compute: Optional[str], memory: Optional[str]) -> Optional[Dict[str, Any]]:
    compute, memory = compute_mode(compute), memory_mode(memory)
    return {"compute": compute, "memory": memory, "count": 1, "instances": []} if compute or memory else None


def compute_mode(text: Optional[str]) -> Optional[str]:
    """Return how a card is divided for computing: SPX (not at all), DPX, TPX, QPX or CPX."""
    return text.upper() if text and re.match(r"^[SDTQC]PX$", text, re.IGNORECASE) else None


def memory_mode(text: Optional[str]) -> Optional[str]:
    """Return how a card's memory is divided: NPS1 (not at all) to NPS8."""
    return text.upper() if text and re.match(r"^NPS[1-8]$", text, re.IGNORECASE) else None


def is_virtual(vbios: Optional[str]) -> bool:
    """Say whether the firmware's name is that of a virtual function (113-MI3SRIOV-001)."""
    return "SRIOV" in (vbios or "")


def _target(text: Optional[str]) -> Optional[str]:
    target = (text or "").lower()
    decimal = DECIMAL_TARGET.match(target)
    if decimal:
        return f"gfx{decimal.group(1)}{int(decimal.group(2)):x}"
    return target if re.match(r"^gfx[1-9][0-9]?[0-9a-f]{2}$", target) else None


def _uuid(text: Optional[str]) -> Optional[str]:
    return uuid_of(int(text, 16)) if text and re.match(r"^(0x)?[0-9a-fA-F]{1,16}$", text) else None


def _version(text: Optional[str]) -> Optional[str]:
    return text if text and re.match(r"^[0-9]+(\.[0-9]+)+[-+.~\w]*$", text) else None


def _node(number: Optional[float]) -> Optional[int]:
    return int(number) if number is not None and 0 <= number < 1 << 16 else None


def _known(*values: Optional[float]) -> Optional[float]:
    return next((value for value in values if value is not None), None)


def _first(found: List[Dict[str, Any]], function: Callable[[Dict[str, Any]], Optional[str]]) -> Optional[str]:
    return next((value for value in map(function, found) if value), None)
