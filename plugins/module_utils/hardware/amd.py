# SPDX-License-Identifier: Apache-2.0
"""AMD: the kernel's compute topology (kfd) and what the amdgpu driver shows of each card in sysfs."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, Dict, List, Optional

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, bus_id, merge, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.pci import PCI_DEVICES
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

KFD_NODES = "sys/class/kfd/kfd/topology/nodes"
GRAPHICS_CORE = "ip_discovery/die/0/11/0"
# Graphics inside a processor. Discrete cards and APUs never share a target.
_APU_NUMBERS = "801 810 902 909 90c 1013 1033 1035 1036 1037 1103 1150 1151 1152 1153"
APU_TARGETS = frozenset(f"gfx{number}" for number in _APU_NUMBERS.split())
# io_links: the kernel's numbers of a link's type
LINK_XGMI = 11
# amd-smi says MB and means MiB.
SMI_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def collect(
    host: Host, devices: List[Device], memory_total_bytes: Optional[int], smi_path: Optional[str] = None
) -> Dict[str, Any]:
    """Add what kfd and amdgpu know to the AMD devices on the bus and return the driver's facts.

    `memory_total_bytes` is the host's memory, which bounds what an APU may use; `smi_path` a recorded
    `amd-smi static --json` that fills in what the kernel does not tell.
    """
    topology = host.report.guard("kfd", partial(_topology, host), [])
    merge(devices, _topology_devices(topology))
    if smi_path is not None:
        merge(devices, _recorded_devices(host, smi_path))
    cards = [device for device in devices if device["vendor"] == "amd"]
    if not cards:
        host.report.probe("kfd", "absent", "no AMD device")
        host.report.probe("amdgpu", "absent", "no AMD device")
        return {"version": None, "rocm_version": None}
    host.report.probe("kfd", "ok" if topology else "absent", None if topology else "the kernel lists no compute node")
    bound = any(card["driver_bound"] == "amdgpu" for card in cards)
    host.report.probe("amdgpu", "ok" if bound else "absent", None if bound else "amdgpu is bound to no device")
    for card in cards:
        host.report.guard("amdgpu", partial(_complete, host, card, memory_total_bytes), None)
    return {"version": host.text("sys/module/amdgpu/version"), "rocm_version": _rocm_version(host)}


def _recorded_devices(host: Host, path: str) -> List[Device]:
    try:
        with open(path, "rb") as stream:
            found = parse_static(stream.read().decode("utf-8", "replace"))
    except OSError as problem:
        host.report.probe("amd_smi", "error", f"{path} cannot be read: {problem.strerror}")
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        host.report.probe("amd_smi", "error", f"{path} is no output of amd-smi static --json")
        return []
    host.report.probe("amd_smi", "ok")
    return found


def parse_static(text: str) -> List[Device]:
    """Return what `amd-smi static --json` says of each GPU: a bare list in its older versions, an object in newer ones;
    a GPU without a PCI address is left out.

    Raises ValueError, KeyError, TypeError or AttributeError when the text is something else.
    """
    content = json.loads(text)
    records = []
    for gpu in content["gpu_data"] if isinstance(content, dict) else content:
        address = bus_id((gpu.get("bus") or {}).get("bdf"))
        if address is None:
            continue
        asic, size = gpu.get("asic") or {}, (gpu.get("vram") or {}).get("size")
        target = str(asic.get("target_graphics_version", "")).lower()
        name = asic.get("market_name")
        records.append(
            new_device(
                "amd",
                address,
                name=name if isinstance(name, str) and name != "N/A" else None,
                architecture=target if re.match(r"^gfx[0-9a-f]{3,5}$", target) else None,
                memory_total_bytes=_smi_size(size),
                # amd-smi lists what amdgpu drives.
                driver_bound="amdgpu",
            )
        )
    return records


def _smi_size(size: Any) -> Optional[int]:
    if not isinstance(size, dict) or not isinstance(size.get("value"), int):
        return None
    scale = SMI_UNITS.get(str(size.get("unit")))
    return int(size["value"]) * scale if scale else None


def gfx_target(number: Optional[int]) -> Optional[str]:
    """Return the name of kfd's `gfx_target_version`: 90402 is gfx942, 90010 gfx90a, 110500 gfx1150.

    Major is decimal, minor and stepping are one hexadecimal digit each.
    """
    if not number:
        return None
    major, minor, stepping = number // 10000, number // 100 % 100, number % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def _topology(host: Host) -> List[Dict[str, Any]]:
    nodes = []
    for name in host.names(KFD_NODES):
        properties = _properties(host.text(KFD_NODES, name, "properties"))
        if not properties.get("simd_count") or properties.get("vendor_id") != 0x1002:
            continue
        location = properties.get("location_id", 0)
        address = "{:04x}:{:02x}:{:02x}.0".format(
            properties.get("domain", 0), location >> 8 & 0xFF, location >> 3 & 0x1F
        )
        banks = [
            _properties(host.text(KFD_NODES, name, "mem_banks", bank, "properties")).get("size_in_bytes", 0)
            for bank in host.names(KFD_NODES, name, "mem_banks")
        ]
        links = [
            _properties(host.text(KFD_NODES, name, "io_links", link, "properties"))
            for link in host.names(KFD_NODES, name, "io_links")
        ]
        nodes.append(
            {
                "node": to_int(name),
                "pci_bus_id": address,
                "target": gfx_target(properties.get("gfx_target_version")),
                # local_mem_size is 0 on today's kernels; the banks are filled.
                "memory": sum(banks) or None,
                "unique_id": properties.get("unique_id"),
                "render": properties.get("drm_render_minor"),
                "xgmi": [link.get("node_to") for link in links if link.get("type") == LINK_XGMI],
            }
        )
    return nodes


def _topology_devices(topology: List[Dict[str, Any]]) -> List[Device]:
    """Return one record a card: a partitioned card has several nodes that differ in the PCI function only."""
    addresses = {node["node"]: node["pci_bus_id"] for node in topology}
    by_card: Dict[str, List[Dict[str, Any]]] = {}
    for node in topology:
        by_card.setdefault(node["pci_bus_id"], []).append(node)
    records = []
    for address, nodes in by_card.items():
        first = nodes[0]
        peers = sorted({addresses[peer] for node in nodes for peer in node["xgmi"] if peer in addresses} - {address})
        sizes = [node["memory"] for node in nodes if node["memory"]]
        records.append(
            new_device(
                "amd",
                address,
                uuid=_uuid(first["unique_id"]),
                architecture=first["target"],
                memory_total_bytes=sum(sizes) if sizes else None,
                render_node=f"/dev/dri/renderD{first['render']}" if first["render"] else None,
                partition={"compute": None, "memory": None, "count": len(nodes)} if len(nodes) > 1 else None,
                links=[{"type": "xgmi", "peer_bus_id": peer, "count": 1} for peer in peers],
                # Only amdgpu makes compute nodes.
                driver_bound="amdgpu",
                kfd=True,
            )
        )
    return records


def _complete(host: Host, card: Device, memory_total_bytes: Optional[int]) -> None:
    """Fill in what amdgpu shows of one card, and judge it."""
    card["kfd"] = bool(card.get("kfd"))
    if card["driver_bound"] != "amdgpu":
        driver = card["driver_bound"]
        card["unusable_reason"] = "no driver is bound" if driver is None else f"bound to {driver}"
        return
    folder = _folder(host, card)
    vram, gtt = host.integer(folder, "mem_info_vram_total"), host.integer(folder, "mem_info_gtt_total")
    if card["architecture"] is None:
        parts: List[Any] = [host.integer(folder, GRAPHICS_CORE, part) for part in ("major", "minor", "revision")]
        if all(part is not None for part in parts):
            card["architecture"] = "gfx{}{:x}{:x}".format(*parts)
    card["name"] = card["name"] or host.text(folder, "product_name") or None
    card["uuid"] = card["uuid"] or _uuid(to_int("0x" + (host.text(folder, "unique_id") or "")))
    card["integrated"] = _is_apu(host, card, folder, vram, gtt)
    if card["integrated"]:
        # The carve-out and the mapped system memory are one memory: the larger, never the sum.
        known = [size for size in (vram, gtt, card["memory_total_bytes"]) if size]
        total = max(known) if known else None
        card["memory_total_bytes"] = min(total, memory_total_bytes) if total and memory_total_bytes else total
        card["unified_memory"] = True
        card["unusable_reason"] = "an integrated GPU, it shares the host's memory"
    else:
        card["memory_total_bytes"] = vram or card["memory_total_bytes"]
        card["memory_used_bytes"] = host.integer(folder, "mem_info_vram_used")
    compute = host.text(folder, "current_compute_partition")
    if compute or card["partition"]:
        count = card["partition"]["count"] if card["partition"] else 1
        memory = host.text(folder, "current_memory_partition")
        card["partition"] = {"compute": compute or None, "memory": memory or None, "count": count}
    if card["unusable_reason"] is None and not card["render_node"] and not card["kfd"]:
        card["unusable_reason"] = "it has neither a render node nor a compute node"
    card["usable"] = card["unusable_reason"] is None


def _is_apu(host: Host, card: Device, folder: str, vram: Optional[int], gtt: Optional[int]) -> bool:
    """By gfx target; where there is none, by the small carve-out beside much mapped memory (ollama's rule)."""
    if card["architecture"] is not None:
        return card["architecture"] in APU_TARGETS
    if vram is None or gtt is None or host.exists(folder, "mem_info_vram_vendor") or host.exists(folder, "board_info"):
        return False
    return vram <= 4 << 30 and gtt >= 8 << 30 and gtt >= 4 * vram


def _folder(host: Host, card: Device) -> str:
    for name in host.names(PCI_DEVICES):
        if bus_id(name) == card["pci_bus_id"]:
            return f"{PCI_DEVICES}/{name}"
    return f"{PCI_DEVICES}/{card['pci_bus_id']}"


def _uuid(number: Optional[int]) -> Optional[str]:
    """Return the UUID as HIP and rocminfo print it; 0 and all ones mean that the card has none."""
    return f"GPU-{number:016x}" if number and number != 0xFFFFFFFFFFFFFFFF else None


def _properties(text: Optional[str]) -> Dict[str, int]:
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.match(r"^[0-9]{1,20}$", pair[1])}


def _rocm_version(host: Host) -> Optional[str]:
    text = host.text("opt/rocm/.info/version") or ""
    match = re.match(r"^[0-9]+(\.[0-9]+)+", text)
    return match.group(0) if match else None
