# SPDX-License-Identifier: Apache-2.0
"""How the GPUs of a node reach each other, and which of them belong together."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.numa import NODES
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
PCI_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# The host bridge, and every PCI function below it down to the device itself.
Path = Optional[Tuple[str, List[str]]]


def collect(host: Host, devices: List[Device]) -> Dict[str, Any]:
    """Return `matrix`, the class of every pair of `devices`, and `link_domains`.

    The classes are those of `nvidia-smi topo -m`: SELF; NVLINK and XGMI (a direct link, or one fabric); PIX at most one
    PCIe switch; PXB several switches; PHB the host bridge; NODE several host bridges of one NUMA node; SYS two NUMA
    nodes; UNKNOWN where the machine does not say.
    """
    names = [name for name in host.names(NODES) if re.fullmatch(r"node[0-9]+", name)] if len(devices) > 1 else []
    one_node = len([name for name in names if host.text(NODES, name, "cpulist")]) == 1
    paths = [_path(host, device) for device in devices]
    matrix = [["SELF"] * len(devices) for _ in devices]
    for row, first in enumerate(devices):
        for column in range(row):
            kind = _link(first, devices[column]) or _bus(
                paths[row], paths[column], first["numa_node"], devices[column]["numa_node"], one_node
            )
            matrix[row][column] = matrix[column][row] = kind
    return {"matrix": matrix, "link_domains": link_domains(devices, matrix)}


def link_domains(devices: List[Device], matrix: List[List[str]]) -> List[Dict[str, Any]]:
    """Return the groups that a model is best spread over: `type`, `numa_node`, `devices` (positions in `devices`).

    Each usable GPU that is neither MIG-enabled nor partitioned is in exactly one: with the GPUs of its vendor and
    architecture that NVLink reaches (also through others), else that xGMI reaches, else with those of its NUMA node.
    `numa_node` is null when the GPUs are on several nodes, or nobody knows on which.
    """
    kinds: Dict[Tuple[Any, Any], List[int]] = {}
    for position, device in enumerate(devices):
        if device["usable"] and not device["mig"]["mode"] and device["partition"] is None:
            kinds.setdefault((device["vendor"], device["architecture"]), []).append(position)
    domains = []
    for positions in kinds.values():
        taken: Set[int] = set()
        for link in ("NVLINK", "XGMI"):
            left = [position for position in positions if position not in taken]
            for group in _components(left, matrix, link):
                if len(group) > 1:
                    domains.append((link.lower(), group))
                    taken.update(group)
        domains += [("pcie", group) for group in _by_node(sorted(set(positions) - taken), devices)]
    found = []
    for kind, group in sorted(domains, key=lambda domain: domain[1]):
        nodes = {devices[position]["numa_node"] for position in group}
        found.append({"type": kind, "numa_node": nodes.pop() if len(nodes) == 1 else None, "devices": group})
    return found


def _components(positions: List[int], matrix: List[List[str]], link: str) -> List[List[int]]:
    left, groups = list(positions), []
    while left:
        group, following = [], [left.pop(0)]
        while following:
            position = following.pop()
            group.append(position)
            following += [other for other in left if matrix[position][other] == link]
            left = [other for other in left if other not in following]
        groups.append(sorted(group))
    return groups


def _by_node(positions: List[int], devices: List[Device]) -> List[List[int]]:
    """Where no GPU's node is known the machine has one; where one's alone is not, that GPU stands by itself."""
    known = any(devices[position]["numa_node"] is not None for position in positions)
    groups: Dict[Any, List[int]] = {}
    for position in positions:
        node = devices[position]["numa_node"]
        groups.setdefault(("alone", position) if known and node is None else node, []).append(position)
    return list(groups.values())


def _link(first: Device, second: Device) -> Optional[str]:
    if _peers(first, "nvlink", second) or _same_fabric(first, second):
        return "NVLINK"
    hive = _hive(first)
    if _peers(first, "xgmi", second) or (hive is not None and hive == _hive(second)):
        return "XGMI"
    return None


def _peers(first: Device, kind: str, second: Device) -> bool:
    """Either end may be the one that says so: the other one may be lost."""
    for one, other in ((first, second), (second, first)):
        address = other["pci_bus_id"]
        if address is not None and any(link.get("peer_bus_id") == address for link in _links(one, kind)):
            return True
    return False


def _links(device: Device, kind: str) -> List[Dict[str, Any]]:
    return [link for link in device["links"] if link.get("type") == kind and link.get("count") != 0]


def _same_fabric(first: Device, second: Device) -> bool:
    """The fabric manager put both together (nvidia-smi tells of no links, but of that), or else they share a switch.

    A guest sees no addresses of switches; what it was given is one partition of the fabric.
    """
    fabrics = [_fabric(first), _fabric(second)]
    if None not in fabrics:
        return fabrics[0] == fabrics[1]
    switches = [_switches(first), _switches(second)]
    if not all(switches):
        return False
    return None in switches[0] or None in switches[1] or bool(switches[0] & switches[1])


def _switches(device: Device) -> Set[Optional[str]]:
    return {link.get("peer_bus_id") for link in _links(device, "nvlink") if link.get("peer_type") == "switch"}


def _fabric(device: Device) -> Optional[Tuple[Optional[str], Any]]:
    """Return cluster and clique; a cluster of one machine has no UUID."""
    fabric = device["fabric"] or {}
    if fabric.get("state") != "completed" or fabric.get("clique_id") is None:
        return None
    return fabric.get("cluster_uuid"), fabric["clique_id"]


def _hive(device: Device) -> Optional[str]:
    hive = str(device["hive_id"] or "").lower()
    hive = hive[2:] if hive.startswith("0x") else hive
    return hive.lstrip("0") or None


def _path(host: Host, device: Device) -> Path:
    """Return where the device hangs in the PCI tree, from its real path: .../pci0000:00/0000:00:01.0/0000:01:00.0."""
    places = []
    if device["pci_bus_id"] is not None:
        places.append(host.path("sys/bus/pci/devices", device["pci_bus_id"]))
    if device.get("folder"):
        places.append(host.path(device["folder"]))
    for place in places:
        parts = os.path.realpath(place).split(os.sep)
        bridges = [index for index, part in enumerate(parts) if HOST_BRIDGE.fullmatch(part)]
        below = parts[bridges[-1] + 1 :] if bridges else []
        if below and all(PCI_FUNCTION.fullmatch(part) for part in below):
            return parts[bridges[-1]], below
    return None


def _bus(first: Path, second: Path, node: Optional[int], other_node: Optional[int], one_node: bool) -> str:
    """Classify by the PCI tree, as NVML's nvmlGpuTopologyLevel does, and by NUMA node across host bridges.

    A switch is an upstream port and, below it, a downstream port for each device: two devices of one switch have the
    upstream port in common and each one port of their own.
    """
    if first is not None and second is not None and first[0] == second[0]:
        common = sum(1 for part in first[1] if part in second[1])
        if common == 0:
            return "PHB"
        return "PIX" if max(len(first[1]), len(second[1])) - common <= 2 else "PXB"
    if node is not None and other_node is not None and node != other_node:
        return "SYS"
    if first is None or second is None:
        # On the same node everything from PIX to NODE is possible.
        return "UNKNOWN"
    return "NODE" if one_node or (node is not None and node == other_node) else "UNKNOWN"
