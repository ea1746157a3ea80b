# SPDX-License-Identifier: Apache-2.0
"""What `nvidia-smi -q -x` and `nvidia-smi -q` print as records: any driver's output, complete, cut off or damaged."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import bus_id
from ansible_collections.fleet.inference.plugins.module_utils.hardware.nvidia_answer import Answer, Record

# What NVML, nvidia-smi of any age and its XML print for a value that they do not have (brackets are taken off first).
NULLS = frozenset(
    (
        "",
        "n/a",
        "none",
        "unknown",
        "unknown error",
        "not supported",
        "not available",
        "not found",
        "err!",
        "error",
        "gpu is lost",
        "gpu requires reset",
        "gpu requires restart",
        "insufficient permissions",
        "function not found",
        "uninitialized",
        "requested functionality has been deprecated",
    )
)
FAULTS = {"gpu is lost": "lost", "gpu requires reset": "reset_required", "gpu requires restart": "reset_required"}
VIRTUALIZATION = {
    "none": "none",
    "pass-through": "passthrough",
    "vgpu": "vgpu_guest",
    "host vgpu": "vgpu_host",
    "host vsga": "vgpu_host",
}
COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
FABRIC_STATES = {"n/a": "not_supported", "not supported": "not_supported", "not started": "not_started"}
FABRIC_STATES.update({"in progress": "in_progress", "completed": "completed"})
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# Long lists that nobody reads.
SKIPPED = frozenset(("supported_clocks", "accounted_processes"))

_SIZE = re.compile(r"^([0-9]{1,15})(?:\.[0-9]+)?\s*(B|KiB|MiB|GiB|TiB)$")
_INTEGER = re.compile(r"^([0-9]{1,18})x?$")
_WATTS = re.compile(r"^([0-9]{1,9}(?:\.[0-9]+)?)\s*W$")
_PCI_ID = re.compile(r"^(?:0x)?([0-9A-Fa-f]{4})([0-9A-Fa-f]{4})$")
_LIBRARY = re.compile(r"NVML library version: ([0-9]+(?:\.[0-9]+)+)")
_TEXT_GPU = re.compile(r"^GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9])\s*$")
_LABEL = re.compile(r"[^a-z0-9]+")
_NO_HANDLE = re.compile(r"device handle for GPU\s*([0-9A-Fa-f:.]+):\s*(.+)")
_LIST_GPU = re.compile(r"^GPU ([0-9]+): (.*?) \(UUID: (GPU-[0-9A-Za-z-]+)\)\s*$")
_LIST_MIG = re.compile(r"^\s+MIG (\S+)\s+Device\s+([0-9]+): \(UUID: (MIG-[^)\s]+)\)\s*$")
_VERSION = re.compile(r"^[0-9]+(?:\.[0-9]+)+")
_CAPABILITY = re.compile(r"^[0-9]{1,2}\.[0-9]$")
_UUID_ZERO = re.compile(r"^[0-]+$")


class Node:
    """An element with its text and its children; names are lower case."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.text = ""
        self.children: List[Node] = []

    def child(self, *tags: str) -> Optional[Node]:
        """Return the first child that has one of these names; earlier names are preferred."""
        for tag in tags:
            for node in self.children:
                if node.tag == tag:
                    return node
        return None

    def find(self, *path: str) -> Optional[Node]:
        """Follow a path, in which each step may offer several names: `current_ecc|current`."""
        node: Optional[Node] = self
        for step in path:
            node = node.child(*step.split("|")) if node is not None else None
        return node

    def raw(self, *path: str) -> Optional[str]:
        """Return the text at a path as it is printed, None when it is not there."""
        node = self.find(*path)
        return None if node is None else node.text.strip()

    def value(self, *path: str) -> Optional[str]:
        """Return the text at a path, None for every spelling of no value."""
        return value_of(self.raw(*path))

    def all(self, tag: str) -> Iterator[Node]:
        """Return the children with this name."""
        return (node for node in self.children if node.tag == tag)

    def texts(self) -> Iterator[str]:
        """Return the texts of this element and of everything in it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node.text
            waiting += node.children


def plain(text: Optional[str]) -> str:
    """Return a text in lower case without blanks and brackets around it."""
    return (text or "").strip().strip("[]").strip().lower()


def value_of(text: Optional[str]) -> Optional[str]:
    """Return the text of a value, None for every way in which NVIDIA's tools spell that there is none."""
    return None if plain(text) in NULLS else (text or "").strip()


def size_of(text: Optional[str]) -> Optional[int]:
    """Return the bytes that a size such as `40960 MiB` stands for, None when there is no size."""
    match = _SIZE.match((text or "").strip())
    return int(match.group(1)) * UNITS[match.group(2)] if match else None


def integer_of(text: Optional[str]) -> Optional[int]:
    """Return the number that `3` or `16x` stands for, None when there is none."""
    match = _INTEGER.match((text or "").strip())
    return int(match.group(1)) if match else None


def watts_of(text: Optional[str]) -> Optional[float]:
    """Return the watts that `700.00 W` stands for, None when there are none."""
    match = _WATTS.match((text or "").strip())
    return float(match.group(1)) or None if match else None


def switch_of(text: Optional[str]) -> Optional[bool]:
    """Return what `Enabled` or `No` stands for, None for anything else."""
    return {"enabled": True, "yes": True, "disabled": False, "no": False}.get(plain(text))


def version_of(text: Optional[str]) -> Optional[str]:
    """Return the version that a text begins with: since 610 a note that the line goes away follows it."""
    match = _VERSION.match((text or "").strip())
    return match.group() if match else None


def parse(text: str) -> Answer:
    """Read what nvidia-smi printed: the XML of `-q -x`, the text of `-q`, or a sentence about what is wrong.

    A document that ends early or is damaged gives the GPUs before the damage and a sentence in `problem`.
    """
    if "<nvidia_smi_log" in text:
        answer = _parse_xml(text)
    elif "NVSMI LOG" in text:
        answer = _parse_text(text)
    else:
        answer = Answer()
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        answer.problem = f"nvidia-smi printed no document but: {first[:200]}"
    for match in _NO_HANDLE.finditer(text):
        reason = match.group(2).strip()
        health = FAULTS.get(plain(reason.split(".")[0]), "error")
        address = bus_id(match.group(1))
        if address is not None:
            answer.lost.append({"index": None, "pci_bus_id": address, "health": health, "reason": reason[:200]})
    answer.mismatch = "Driver/library version mismatch" in text
    library = _LIBRARY.search(text)
    answer.library_version = library.group(1) if library else None
    return answer


def _parse_xml(text: str) -> Answer:
    # Parsing with expat itself needs a third of the time of an element tree, and keeps what came before the damage.
    from xml.parsers import expat  # noqa: PLC0415

    answer = Answer()
    top = Node("")
    stack: List[Node] = [top]
    complete = False
    skipped = 0

    def begin(tag: str, attributes: Dict[str, str]) -> None:
        nonlocal skipped
        if skipped or tag in SKIPPED:
            skipped += 1
            return
        node = Node(tag.lower())
        if tag == "gpu":
            node.text = attributes.get("id", "")
        stack[-1].children.append(node)
        stack.append(node)

    def end(tag: str) -> None:
        nonlocal complete, skipped
        if skipped:
            skipped -= 1
            return
        node = stack.pop()
        if tag == "gpu" and len(stack) == 2:
            answer.records.append(_record(node, len(answer.records)))
        complete = complete or (tag == "nvidia_smi_log" and len(stack) == 1)

    def characters(data: str) -> None:
        # What a GPU's own text holds is its address, not the blanks between its elements.
        if not skipped and stack[-1].tag != "gpu":
            stack[-1].text += data

    def refuse(*_: Any) -> None:
        raise ValueError("it declares entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = refuse
    try:
        # The text is decoded already, whatever the first line says of its encoding.
        parser.Parse(text[text.find("<nvidia_smi_log") :].replace("\0", "").encode("utf-8", "replace"), True)
    except (expat.ExpatError, ValueError) as problem:
        if not complete:
            answer.problem = f"nvidia-smi's document is damaged: {problem}"
    if not complete and answer.problem is None:
        answer.problem = "nvidia-smi's document ends early"
    root = top.child("nvidia_smi_log")
    if root is not None:
        answer.driver_version = version_of(root.raw("kmd_version|driver_version"))
        answer.cuda_version = version_of(root.raw("cuda_umd_version|cuda_version"))
    return answer


def _parse_text(text: str) -> Answer:
    answer = Answer()
    head = Node("")
    gpus: List[Node] = []
    stack: List[Tuple[int, Node]] = [(-1, head)]
    body = text[text.find("NVSMI LOG") :].partition("\n")[2]
    # Of several runs in one file the first is read.
    body = body.partition("NVSMI LOG")[0]
    # A line that was cut off may hold half a value.
    lines = body.replace("\0", "").splitlines() if body.endswith("\n") else body.replace("\0", "").splitlines()[:-1]
    for line in lines:
        stripped = line.strip()
        if not stripped:
            continue
        depth = len(line) - len(line.lstrip(" \t"))
        match = _TEXT_GPU.match(line)
        if match:
            node = Node("gpu")
            node.text = match.group(1)
            gpus.append(node)
            stack = [(0, node)]
            continue
        if depth == 0:
            if gpus and not stripped.startswith("GPU "):
                break
            stack = [(-1, head)]
        label, _, value = (stripped + " ").partition(" : ")
        node = Node(_LABEL.sub("_", label.lower()).strip("_"))
        node.text = value.strip()
        while stack[-1][0] >= depth and len(stack) > 1:
            stack.pop()
        stack[-1][1].children.append(node)
        stack.append((depth, node))
    # The list of processes comes near the end of each GPU.
    if gpus and gpus[-1].child("processes") is None:
        gpus.pop()
        answer.problem = "nvidia-smi's output ends early"
    answer.records = [_record(gpu, index) for index, gpu in enumerate(gpus)]
    answer.driver_version = version_of(head.raw("kmd_version|driver_version"))
    answer.cuda_version = version_of(head.raw("cuda_umd_version|cuda_version"))
    attached = integer_of(head.raw("attached_gpus"))
    if answer.problem is None and (not gpus or (attached or 0) > len(gpus)):
        answer.problem = f"nvidia-smi's output lists {len(gpus)} of {attached or 'its'} GPUs"
    add_listing(answer.records, text)
    return answer


def _record(gpu: Node, index: int) -> Record:
    record: Record = {
        "index": index,
        "pci_bus_id": bus_id(gpu.raw("pci", "pci_bus_id|bus_id")) or bus_id(gpu.text),
        "uuid": gpu.value("uuid|gpu_uuid"),
        "name": gpu.value("product_name"),
        "minor": integer_of(gpu.raw("minor_number")),
        "product_architecture": gpu.value("product_architecture"),
        "pci": _ids(gpu.find("pci")),
        "memory_total_bytes": size_of(gpu.raw("fb_memory_usage", "total")),
        "memory_used_bytes": size_of(gpu.raw("fb_memory_usage", "used")),
        "memory_reserved_bytes": size_of(gpu.raw("fb_memory_usage", "reserved")),
        "memory_bar_bytes": size_of(gpu.raw("bar1_memory_usage", "total")) or None,
        "addressing": plain(gpu.raw("addressing_mode")),
        "process_bytes": _process_bytes(gpu.find("processes")),
        "persistence_mode": switch_of(gpu.raw("persistence_mode")),
        "virtualization": _virtualization(gpu),
        "ecc": _ecc(gpu),
        "power": _power(gpu),
        "pcie": _pcie(gpu.find("pci", "pci_gpu_link_info|gpu_link_info")),
        "mig": _mig(gpu),
        "fabric": _fabric(gpu.find("fabric")),
        "links": [],
        "recovery": _recovery(gpu),
    }
    total = plain(gpu.raw("fb_memory_usage", "total"))
    record["memory_unsupported"] = record["memory_total_bytes"] in (None, 0) and (
        total in ("n/a", "not supported") or record["memory_total_bytes"] == 0
    )
    record["memory_total_bytes"] = record["memory_total_bytes"] or None
    mode = plain(gpu.raw("compute_mode")).replace(" ", "_")
    record["compute_mode"] = mode if mode in COMPUTE_MODES else None
    if switch_of(gpu.raw("c2c_mode|gpu_c2c_mode")):
        record["links"] = [{"type": "c2c", "peer_bus_id": None, "peer_type": "cpu", "count": None, "weight": None}]
    states = {plain(text) for text in gpu.texts()}
    record["health"] = next((health for state, health in FAULTS.items() if state in states), None)
    return record


def _ids(pci: Optional[Node]) -> Optional[Record]:
    match = _PCI_ID.match((pci.raw("pci_device_id|device_id") if pci else None) or "")
    if pci is None or match is None or match.group(2).lower() != "10de" or match.group(1) == "0000":
        return None
    subsystem = _PCI_ID.match(pci.raw("pci_sub_system_id|sub_system_id") or "")
    return {
        "vendor_id": "10de",
        "device_id": match.group(1).lower(),
        "subsystem_vendor_id": subsystem.group(2).lower() if subsystem else None,
        "subsystem_device_id": subsystem.group(1).lower() if subsystem else None,
        "class": None,
        "revision": None,
    }


def _process_bytes(processes: Optional[Node]) -> Optional[int]:
    if processes is None:
        return None
    # In XML every process is an element, in text its number comes first and the rest below it.
    each = [*processes.all("process_info"), *processes.all("process_id")]
    sizes = [size_of(node.raw("used_memory|used_gpu_memory")) for node in each]
    known = [size for size in sizes if size is not None]
    return sum(known) if known or (not each and plain(processes.text) in ("", "none")) else None


def _virtualization(gpu: Node) -> Optional[str]:
    host = gpu.value("gpu_virtualization_mode", "host_vgpu_mode")
    mode = VIRTUALIZATION.get(plain(gpu.raw("gpu_virtualization_mode", "virtualization_mode")))
    return "vgpu_host" if host is not None and mode in (None, "none") else mode


def _ecc(gpu: Node) -> Record:
    volatile = gpu.find("ecc_errors", "volatile")
    counts: List[Optional[int]] = []
    if volatile is not None:
        # Since Turing there are two memories; before, a total of all errors of two bits.
        counts = [integer_of(node.text) for node in volatile.children if "_uncorrectable" in node.tag]
        counts = counts or [integer_of(volatile.raw("double_bit", "total"))]
    known = [count for count in counts if count is not None]
    return {
        "mode": switch_of(gpu.raw("ecc_mode", "current_ecc|current")),
        "pending_mode": switch_of(gpu.raw("ecc_mode", "pending_ecc|pending")),
        "uncorrected": sum(known) if known else None,
        "remap_pending": switch_of(gpu.raw("remapped_rows", "remapped_row_pending|pending")),
        "remap_failure": switch_of(gpu.raw("remapped_rows", "remapped_row_failure|remapping_failure_occurred")),
    }


def _power(gpu: Node) -> Record:
    readings = gpu.find("gpu_power_readings|power_readings") or Node("")
    # Since 610 what can be changed stands in a group of its own.
    limits = readings.find("gpu_ceiling_power_limit|ceiling_power_limit") or readings
    return {
        "limit_watts": watts_of(limits.raw("current_power_limit|power_limit")),
        "default_limit_watts": watts_of(limits.raw("default_power_limit")),
        "min_limit_watts": watts_of(readings.raw("min_power_limit")) or watts_of(limits.raw("min_power_limit")),
        "max_limit_watts": watts_of(readings.raw("max_power_limit")) or watts_of(limits.raw("max_power_limit")),
    }


def _pcie(link: Optional[Node]) -> Record:
    link = link or Node("")
    generation, width = ("pcie_gen|pcie_generation", "link_widths|link_width")
    return {
        "generation_max": integer_of(link.raw(generation, "max_link_gen|max")) or None,
        "generation_current": integer_of(link.raw(generation, "current_link_gen|current")) or None,
        "width_max": integer_of(link.raw(width, "max_link_width|max")) or None,
        "width_current": integer_of(link.raw(width, "current_link_width|current")) or None,
    }


def _mig(gpu: Node) -> Record:
    mode = switch_of(gpu.raw("mig_mode", "current_mig|current"))
    below = gpu.find("mig_devices") or gpu
    return {
        "mode": mode,
        "pending_mode": switch_of(gpu.raw("mig_mode", "pending_mig|pending")),
        "instances": [_mig_device(node) for node in below.all("mig_device")] if mode else [],
    }


def _mig_device(node: Node) -> Record:
    return {
        "index": integer_of(node.raw("index")),
        "uuid": node.value("uuid"),
        "profile": node.value("profile"),
        "gpu_instance_id": integer_of(node.raw("gpu_instance_id")),
        "compute_instance_id": integer_of(node.raw("compute_instance_id")),
        "memory_total_bytes": size_of(node.raw("fb_memory_usage|shared_fb_memory_usage", "total")) or None,
        "multiprocessors": integer_of(node.raw("device_attributes", "shared", "multiprocessor_count")),
    }


def _fabric(fabric: Optional[Node]) -> Optional[Record]:
    if fabric is None or plain(fabric.raw("state")) in FAULTS:
        return None
    state = FABRIC_STATES.get(plain(fabric.raw("state")))
    cluster = fabric.value("clusteruuid")
    status = fabric.value("status")
    completed = state == "completed"
    healthy = _fabric_health(fabric.find("health"))
    if completed and status is not None and plain(status) != "success":
        healthy = False
    return {
        "state": state,
        "status": status if completed else None,
        # A cluster of one machine has no UUID, which is printed as zeros.
        "cluster_uuid": None if cluster is None or _UUID_ZERO.match(cluster) else cluster.lower(),
        "clique_id": integer_of(fabric.raw("cliqueid")) if completed else None,
        "healthy": healthy,
    }


def _fabric_health(health: Optional[Node]) -> Optional[bool]:
    if health is None:
        return None
    summary = health.value("summary")
    if summary is not None:
        return plain(summary) == "healthy"
    bandwidth = {"full": False, "degraded": True}.get(plain(health.raw("bandwidth")))
    flags = [
        {"true": True, "false": False}.get(plain(health.raw(tag)))
        for tag in ("route_recovery_in_progress", "route_unhealthy", "access_timeout_recovery")
    ]
    faults = [fault for fault in (bandwidth, *flags) if fault is not None]
    return not any(faults) if faults else None


def _recovery(gpu: Node) -> Optional[str]:
    """Return `reset`, `drain and reset` or `reboot` when the driver asks for it."""
    action = plain(gpu.raw("gpu_recovery_action"))
    if "drain" in action and "reset" in action:
        return "drain and reset"
    for known in ("reset", "reboot"):
        if known in action and action not in FAULTS:
            return known
    if switch_of(gpu.raw("gpu_reset_status", "reset_required")):
        return "reset"
    return "drain and reset" if switch_of(gpu.raw("gpu_reset_status", "drain_and_reset_recommended")) else None


def add_capabilities(records: List[Record], text: str) -> None:
    """Add the compute capability, which is in no document: lines `pci.bus_id, compute_cap` of `--query-gpu`."""
    known: Dict[Optional[str], str] = {}
    for line in text.splitlines():
        address, _, capability = line.partition(",")
        if _CAPABILITY.match(capability.strip()):
            known[bus_id(address)] = capability.strip()
    for record in records:
        if record["pci_bus_id"] in known and record["pci_bus_id"] is not None:
            record["architecture"] = known[record["pci_bus_id"]]


def add_listing(records: List[Record], text: str) -> None:
    """Add the UUIDs and profiles of MIG devices, which are in no document, from the lines of `nvidia-smi -L`."""
    by_index = {record["index"]: record for record in records}
    record: Record = {}
    for line in text.splitlines():
        match = _LIST_GPU.match(line)
        if match:
            record = by_index.get(int(match.group(1)), {})
            continue
        match = _LIST_MIG.match(line)
        for instance in record.get("mig", {}).get("instances", []) if match else []:
            if match and instance["index"] == int(match.group(2)):
                instance["profile"] = instance["profile"] or match.group(1)
                instance["uuid"] = instance["uuid"] or match.group(3)
