# SPDX-License-Identifier: Apache-2.0
"""NUMA nodes: their processors, their memory, and how far they are from each other."""

from __future__ import annotations

import re
from typing import Any, Dict, List

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, to_int

NODES = "sys/devices/system/node"
CPU_LIST = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")


def collect(host: Host) -> List[Dict[str, Any]]:
    """Return the online NUMA nodes by number: `node`, `cpus`, `memory_total_bytes`, `memory_free_bytes`, `distances`.

    `cpus` is a list such as "0-15,32-47". It is null for a node without processors, whose memory is a GPU's (Grace
    Hopper, POWER9) or is attached otherwise (CXL). `distances` are to all nodes in their order, 10 being local.
    A node whose processors cannot be read is left out: nobody could say what its memory is.
    """
    nodes = []
    for name in host.names(NODES):
        number = re.fullmatch(r"node([0-9]{1,6})", name)
        if number is None:
            continue
        cpus = host.text(NODES, name, "cpulist")
        if cpus is None or (cpus and not CPU_LIST.fullmatch(cpus)):
            host.report.error("numa", f"/{NODES}/{name}/cpulist names no processors")
            continue
        memory = _memory(host.text(NODES, name, "meminfo") or "")
        distances = [to_int(word) for word in (host.text(NODES, name, "distance") or "").split()]
        nodes.append(
            {
                "node": int(number.group(1)),
                "cpus": cpus or None,
                "memory_total_bytes": memory.get("MemTotal"),
                "memory_free_bytes": memory.get("MemFree"),
                "distances": [] if None in distances else distances,
            }
        )
    return sorted(nodes, key=lambda node: int(node["node"]))


def _memory(text: str) -> Dict[str, int]:
    rows = re.findall(r"^Node [0-9]+ (MemTotal|MemFree):\s+([0-9]{1,15}) kB$", text, re.MULTILINE | re.ASCII)
    return {key: int(value) * 1024 for key, value in rows}
