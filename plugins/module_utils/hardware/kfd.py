# SPDX-License-Identifier: Apache-2.0
"""AMD's compute topology (kfd): one node for each GPU, or for each partition of one, with its memory and its links."""

from __future__ import annotations

import re
from typing import Any, Collection, Dict, List, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

NODES = "sys/class/kfd/kfd/topology/nodes"
VENDOR_ID = 0x1002
# io_links: the kernel's number of the type of a link (include/uapi of kfd: HSA_IOLINKTYPE_XGMI)
LINK_XGMI = 11
# Numbers above are no sizes but garbage; the facts are JSON, whose readers may have 64 signed bits only.
LIMIT = 1 << 62

Node = Dict[str, Any]


def gfx_target(number: Optional[int]) -> Optional[str]:
    """Return the name of kfd's `gfx_target_version`: 90402 is gfx942, 90010 gfx90a, 110500 gfx1150.

    Major is decimal, minor and stepping are one hexadecimal digit each.
    """
    if not number:
        return None
    major, minor, stepping = number // 10000, number // 100 % 100, number % 100
    return f"gfx{major}{minor:x}{stepping:x}" if major < 100 and minor < 16 and stepping < 16 else None


def uuid_of(number: Optional[int]) -> Optional[str]:
    """Return the UUID as HIP and rocminfo print it; 0 and all ones mean that the card has none."""
    return f"GPU-{number:016x}" if number and 0 < number < 0xFFFFFFFFFFFFFFFF else None


def collect(host: Host, addresses: Collection[str] = ()) -> List[Device]:
    """Return one record for each AMD card that is a compute node; `addresses` are the cards that are known already."""
    return cards(nodes(host), addresses)


def nodes(host: Host) -> List[Node]:
    """Return the compute nodes that are AMD GPUs, in the kernel's order; a node that may not be read is left out."""
    found: List[Node] = []
    linked: Set[Tuple[int, int, Optional[int]]] = set()
    for name in sorted(host.names(NODES), key=lambda name: (len(name), name)):
        number = to_int(name)
        properties = _properties(host.text(NODES, name, "properties"))
        # simd_count is 0 for a node that has processors only.
        if number is None or not properties.get("simd_count") or properties.get("vendor_id") != VENDOR_ID:
            continue
        banks = [f"{NODES}/{name}/mem_banks/{bank}" for bank in host.names(NODES, name, "mem_banks")]
        # local_mem_size is 0 on today's kernels; the banks are filled.
        sizes = [_properties(host.text(bank, "properties")).get("size_in_bytes", 0) for bank in banks]
        used = [_bounded(host.integer(bank, "used_memory")) for bank in banks]
        # The low bits are the PCI address. A partition has the same address as its card: its number is in the bits
        # from 28 on, or, on older kernels, added to the function.
        place = (properties.get("domain", 0) & 0xFFFFFFFF, properties.get("location_id", 0) & 0xFFFF)
        card = (place[0], place[1] & ~7, properties.get("unique_id") or None)
        render = properties.get("drm_render_minor")
        found.append(
            {
                "node": number,
                "domain": place[0],
                "location": place[1],
                "device_id": properties.get("device_id"),
                "architecture": gfx_target(properties.get("gfx_target_version")),
                "memory": _bounded(sum(sizes)) or _bounded(properties.get("local_mem_size")) or None,
                "used": None if not used or None in used else _bounded(sum(size or 0 for size in used)),
                "unique_id": card[2],
                "hive_id": properties.get("hive_id"),
                "render_node": f"/dev/dri/renderD{render}" if render and render < 1 << 20 else None,
                "compute_units": _compute_units(properties),
                # A node that is processor and GPU at once: an APU of an older kernel.
                "processors": bool(properties.get("cpu_cores_count")),
                # All partitions have the links of their card: 63 of them in each of 64 nodes, read once a card.
                "xgmi": [] if card in linked else _xgmi_links(host, name),
            }
        )
        if card[2] and found[-1]["xgmi"]:
            linked.add(card)
    return found


def _xgmi_links(host: Host, name: str) -> List[Dict[str, Any]]:
    links = [
        _properties(host.text(NODES, name, "io_links", link, "properties"))
        for link in host.names(NODES, name, "io_links")
    ]
    return [
        {
            "node": link["node_to"],
            "weight": _bounded(link.get("weight")) or None,
            "count": _links(link.get("min_bandwidth", 0), link.get("max_bandwidth", 0)),
        }
        for link in links
        if link.get("type") == LINK_XGMI and "node_to" in link
    ]


def cards(found: List[Node], addresses: Collection[str] = ()) -> List[Device]:
    """Return one record for each card, sorted by address: the partitions of a card have one unique id and one slot.

    A node at a function of its own that is in `addresses` (a virtual function) is a card of its own: partitions are
    not on the bus.
    """
    groups: Dict[Tuple[int, int, Optional[int]], List[Node]] = {}
    for node in sorted(found, key=lambda node: node["location"] & 7):
        alone = node["location"] & 7 and _address(node) in addresses
        slot = node["location"] if alone else node["location"] & ~7
        groups.setdefault((node["domain"], slot, node["unique_id"]), []).append(node)
    address_of = {node["node"]: _address(members[0]) for members in groups.values() for node in members}
    records = [_card(members, address_of) for members in groups.values()]
    _mirror_links(records)
    records.sort(key=lambda record: record["pci_bus_id"])
    return records


def _card(members: List[Node], address_of: Dict[int, str]) -> Device:
    first = members[0]
    address = _address(first)
    sizes = [node["memory"] for node in members if node["memory"]]
    units = [node["compute_units"] for node in members if node["compute_units"]]
    used = [node["used"] for node in members]
    instances = [
        {
            "kfd_node": node["node"],
            "architecture": node["architecture"],
            "render_node": node["render_node"],
            "memory_total_bytes": node["memory"],
        }
        for node in members
    ]
    device_id = first["device_id"]
    return new_device(
        "amd",
        address,
        uuid=uuid_of(first["unique_id"]),
        pci={
            "vendor_id": f"{VENDOR_ID:04x}",
            "device_id": f"{device_id:04x}" if device_id and device_id < 1 << 16 else None,
            "subsystem_vendor_id": None,
            "subsystem_device_id": None,
            "class": None,
            "revision": None,
        },
        architecture=first["architecture"],
        compute_units=sum(units) or None,
        memory_total_bytes=_bounded(sum(sizes)) or None,
        memory_used_bytes=None if None in used else _bounded(sum(used)),
        unified_memory=any(node["processors"] for node in members),
        render_node=first["render_node"],
        partition={"compute": None, "memory": None, "count": len(members), "instances": instances},
        links=_links_of(members, address, address_of),
        hive_id=f"{first['hive_id']:016x}" if first["hive_id"] else None,
        # Only amdgpu makes compute nodes.
        driver_bound="amdgpu",
        kfd=True,
    )


def _links_of(members: List[Node], address: str, address_of: Dict[int, str]) -> List[Dict[str, Any]]:
    """Return the xGMI links to other cards; those between the partitions of one card are none."""
    links: Dict[str, Dict[str, Any]] = {}
    for link in (link for node in members for link in node["xgmi"]):
        peer = address_of.get(link["node"])
        if peer is None or peer == address:
            continue
        known = links.setdefault(peer, _xgmi(peer, 1, link["weight"]))
        known["count"] = max(known["count"], link["count"])
        known["weight"] = min((weight for weight in (known["weight"], link["weight"]) if weight), default=None)
    return [links[peer] for peer in sorted(links)]


def _mirror_links(records: List[Device]) -> None:
    """Give the other end of each link the link as well: a node that could not be read in full has lost its own."""
    by_address = {record["pci_bus_id"]: record for record in records}
    for record in records:
        for link in list(record["links"]):
            peer = by_address[link["peer_bus_id"]]
            if all(back["peer_bus_id"] != record["pci_bus_id"] for back in peer["links"]):
                peer["links"].append(_xgmi(record["pci_bus_id"], link["count"], link["weight"]))
                peer["links"].sort(key=lambda back: back["peer_bus_id"])


def _xgmi(peer: str, count: int, weight: Optional[int]) -> Dict[str, Any]:
    return {"type": "xgmi", "peer_bus_id": peer, "peer_type": "gpu", "count": count, "weight": weight}


def _links(minimum: int, maximum: int) -> int:
    """Return how many links there are between two GPUs: kfd tells the bandwidth of one and that of all together."""
    return maximum // minimum if 0 < minimum <= maximum < minimum * 64 else 1


def _compute_units(properties: Dict[str, int]) -> Optional[int]:
    simds, per_unit = properties.get("simd_count", 0), properties.get("simd_per_cu", 0)
    return simds // per_unit or None if per_unit > 0 and simds < 1 << 20 else None


def _address(node: Node) -> str:
    location = node["location"]
    return f"{node['domain']:04x}:{location >> 8:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def _bounded(number: Optional[int]) -> Optional[int]:
    return number if number is not None and 0 <= number < LIMIT else None


def _properties(text: Optional[str]) -> Dict[str, int]:
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.match(r"^[0-9]{1,20}$", pair[1])}
