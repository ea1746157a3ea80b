# SPDX-License-Identifier: Apache-2.0
"""AMD GPUs: the kernel's compute topology (kfd), what amdgpu shows of each card in sysfs, and then amd-smi."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import amd_smi, chips, kfd, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import INTEGRATED_REASON, Device, merge
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Child, Host, to_int

# The block of the graphics core (hardware id 11)
GRAPHICS_CORE = "ip_discovery/die/0/11/0"
# Its version is not the gfx target (Navi 14 is 10.1.1 and gfx1012, Phoenix 11.0.1 and gfx1103); this is the table of
# the kernel's amdkfd (kgd2kfd_probe). From 11.5 on they are the same.
_CORE_TARGETS = {
    (9, 0, 1): "gfx900",
    (9, 1, 0): "gfx902",
    (9, 2, 1): "gfx904",
    (9, 2, 2): "gfx902",
    (9, 3, 0): "gfx90c",
    (9, 4, 0): "gfx906",
    (9, 4, 1): "gfx908",
    (9, 4, 2): "gfx90a",
    (9, 4, 3): "gfx942",
    (9, 4, 4): "gfx942",
    (9, 5, 0): "gfx950",
    (10, 1, 1): "gfx1012",
    (10, 1, 2): "gfx1011",
    (10, 1, 3): "gfx1013",
    (10, 1, 4): "gfx1013",
    (10, 1, 10): "gfx1010",
    (10, 3, 0): "gfx1030",
    (10, 3, 1): "gfx1033",
    (10, 3, 2): "gfx1031",
    (10, 3, 3): "gfx1035",
    (10, 3, 4): "gfx1032",
    (10, 3, 5): "gfx1034",
    (10, 3, 6): "gfx1036",
    (10, 3, 7): "gfx1036",
    (11, 0, 0): "gfx1100",
    (11, 0, 1): "gfx1103",
    (11, 0, 2): "gfx1102",
    (11, 0, 3): "gfx1101",
    (11, 0, 4): "gfx1103",
}
# Graphics inside a processor. Discrete cards and APUs never share a target.
_APU_NUMBERS = "801 810 902 909 90c 1013 1033 1035 1036 1037 1103 1150 1151 1152 1153"
APU_TARGETS = frozenset(f"gfx{number}" for number in _APU_NUMBERS.split())
# The generation of a chip whose PCI id nobody told or knows; the first that fits.
_GENERATIONS = {
    "gfx908": "cdna1",
    "gfx90a": "cdna2",
    "gfx94": "cdna3",
    "gfx95": "cdna4",
    "gfx90": "gcn5",
    "gfx101": "rdna1",
    "gfx103": "rdna2",
    "gfx110": "rdna3",
    "gfx115": "rdna3.5",
    "gfx120": "rdna4",
}
# An accelerator and processors in one package, with one memory for both (MI300A).
ACCELERATOR_APUS = ("74a0",)
# Virtual functions have PCI ids of their own (pci.ids, and the lists of AMD's Kubernetes tools): MI25 and V340, V620,
# Navi 22, V710, MI210, MI300X, MI308X, MI325X, MI350X, MI355X, MI350P.
_VIRTUAL_IDS = "686c 73ae 73ce 7461 7410 74b5 74bd 74b6 74bc 74b9 75b0 75b3 75b8"
VIRTUAL_FUNCTIONS = frozenset(_VIRTUAL_IDS.split())
# The compute modes in which a card is several devices; SPX is one.
DIVIDED = ("DPX", "TPX", "QPX", "CPX")
# hwmon's names of the power limits, in microwatts
POWER_FILES = {
    "limit_watts": "power1_cap",
    "default_limit_watts": "power1_cap_default",
    "min_limit_watts": "power1_cap_min",
    "max_limit_watts": "power1_cap_max",
}
# The first bit of amdgpu's mask of features is the memory controller (AMDGPU_RAS_BLOCK__UMC).
RAS_MEMORY = 1
NOT_ASKED = "not asked: the kernel tells enough"

Attributes = Dict[str, Any]


class Pending:
    """What runs between `start` and `finish`: a child for kfd, and one for each card, so that one that hangs hides none
    of the others."""

    def __init__(self, smi_path: Optional[str]) -> None:
        self.smi_path = smi_path
        self.topology: Optional[Child] = None
        self.attributes: List[Tuple[Device, Optional[Child]]] = []


def start(host: Host, devices: List[Device], smi_path: Optional[str]) -> Pending:
    """Start to read what kfd and amdgpu know of the AMD devices; `smi_path` is a recorded amd-smi or rocm-smi JSON.

    A GPU that hangs blocks such reads for ever, therefore children do them. Without an AMD device none is started.
    """
    pending = Pending(smi_path)
    cards = _cards(devices)
    if host.exists(kfd.NODES):
        addresses = [card["pci_bus_id"] for card in cards]
        pending.topology = host.report.guard(
            "kfd", lambda: host.child(lambda: kfd.collect(host, addresses), "kfd"), None
        )
    for card in cards:
        if card["driver_bound"] == "amdgpu" and card["folder"]:
            asleep = _asleep(card) and not host.wake
            function = partial(read_attributes, host, card["folder"], asleep)
            child = host.report.guard("amdgpu", partial(host.child, function, "amdgpu"), None)
            pending.attributes.append((card, child))
    return pending


def finish(
    pending: Pending, host: Host, devices: List[Device], memory_total_bytes: Optional[int]
) -> Dict[str, Optional[str]]:
    """Add what the sources told to `devices`, judge each AMD card, and return the driver's facts.

    `memory_total_bytes` is the host's memory, which bounds what an APU may use.
    """
    stuck = _finish_topology(pending, host, devices)
    read, failures = _finish_attributes(pending, host)
    for card in _cards(devices):
        _add(card, read.get(id(card), {}))
    version = _finish_tools(pending, host, devices)
    for card in _cards(devices):
        found = read.get(id(card), {})
        host.report.guard("amdgpu", partial(_complete, host, card, found, memory_total_bytes), None)
        _judge(host, card, failures.get(id(card)) or stuck, bool(found.get("answered")))
    return {"version": host.text("sys/module/amdgpu/version") or version, "rocm_version": _rocm_version(host)}


def _finish_topology(pending: Pending, host: Host, devices: List[Device]) -> Optional[str]:
    """Merge what kfd listed; returns the reason when it did not answer in time."""
    if pending.topology is None:
        absence = f"/{kfd.NODES} is not there" if _cards(devices) else "no AMD device"
        host.report.probe("kfd", "absent", absence)
        return None
    outcome = pending.topology.finish()
    records: List[Device] = outcome.value if outcome.status == "ok" else []
    message = outcome.message if records or outcome.status != "ok" else "the kernel lists no AMD compute node"
    status = "absent" if outcome.status == "ok" and not records else outcome.status
    host.report.probe("kfd", status, message, outcome.ms)
    merge(devices, records)
    return outcome.message if outcome.status == "timeout" else None


def _finish_attributes(pending: Pending, host: Host) -> Tuple[Dict[int, Attributes], Dict[int, str]]:
    """Return what was read and what failed, by the identity of the device's record."""
    if not pending.attributes:
        host.report.probe("amdgpu", "absent", "amdgpu is bound to no device")
        return {}, {}
    read: Dict[int, Attributes] = {}
    failures: Dict[int, str] = {}
    worst, longest = "ok", 0
    for card, child in pending.attributes:
        if child is None:
            failures[id(card)] = "no process could be started to ask amdgpu"
            worst = "error" if worst == "ok" else worst
            continue
        outcome = child.finish()
        longest = max(longest, outcome.ms)
        if outcome.status == "ok":
            read[id(card)] = outcome.value
            if outcome.value["unreadable"]:
                failures[id(card)] = f"amdgpu does not let {outcome.value['unreadable']} be read"
                worst = "error" if worst == "ok" else worst
        else:
            message = outcome.message or outcome.status
            timeout = outcome.status == "timeout"
            failures[id(card)] = message if timeout else f"amdgpu could not be read: {message}"
            worst = "timeout" if timeout or worst == "timeout" else "error"
    for card, _ in pending.attributes:
        if id(card) in failures:
            host.report.error("amdgpu", f"{card['pci_bus_id']}: {failures[id(card)]}")
    host.report.probe("amdgpu", worst, next(iter(failures.values()), None), longest)
    return read, failures


def read_attributes(host: Host, folder: str, asleep: bool) -> Attributes:
    """Return what amdgpu shows of the card in `folder`; sizes in bytes, limits in watts.

    The memory sizes, the id and the name come from what the driver keeps in memory. The rest asks the card and may wake
    it (older kernels resume it for hwmon), so that it is left out while the card is asleep.
    """
    size = "mem_info_vram_total"
    found: Attributes = {
        "vram_total": _positive(host, folder, size),
        "vram_used": _bounded(host.integer(folder, "mem_info_vram_used")),
        "visible": _positive(host, folder, "mem_info_vis_vram_total"),
        "gtt_total": _positive(host, folder, "mem_info_gtt_total"),
        "gtt_used": _bounded(host.integer(folder, "mem_info_gtt_used")),
        "uuid": kfd.uuid_of(to_int("0x" + (host.text(folder, "unique_id") or ""))),
        "name": _name(host.text(folder, "product_name")),
        "architecture": _discovered(host, folder),
        "virtual": amd_smi.is_virtual(host.text(folder, "vbios_version")),
        "board": host.exists(folder, "mem_info_vram_vendor") or host.exists(folder, "board_info"),
        "unreadable": size if host.exists(folder, size) and host.text(folder, size) is None else None,
        "power": {},
        "ecc": {},
        "compute": None,
        "memory": None,
    }
    found["answered"] = found["vram_total"] is not None or found["gtt_total"] is not None
    if asleep:
        return found
    found["compute"] = amd_smi.compute_mode(host.text(folder, "current_compute_partition"))
    found["memory"] = amd_smi.memory_mode(host.text(folder, "current_memory_partition"))
    for sensor in host.names(folder, "hwmon"):
        limits = {key: _watts(host.integer(folder, "hwmon", sensor, name)) for key, name in POWER_FILES.items()}
        found["power"] = found["power"] or {key: watts for key, watts in limits.items() if watts is not None}
    mask = re.match(r"^feature mask: 0x([0-9a-fA-F]{1,16})\b", host.text(folder, "ras", "features") or "")
    uncorrected = re.search(r"^ue: ([0-9]{1,18})\s*$", host.text(folder, "ras", "umc_err_count") or "", re.MULTILINE)
    if mask:
        found["ecc"]["mode"] = bool(int(mask.group(1), 16) & RAS_MEMORY)
    if uncorrected:
        found["ecc"]["uncorrected"] = int(uncorrected.group(1))
    return found


def _add(card: Device, found: Attributes) -> None:
    """Fill in what needs no judgement, before the tools are asked for the rest."""
    if not found:
        return
    card["name"] = card["name"] or found["name"]
    card["uuid"] = card["uuid"] or found["uuid"]
    card["architecture"] = card["architecture"] or found["architecture"]
    card["memory_total_bytes"] = card["memory_total_bytes"] or found["vram_total"]
    card["memory_bar_bytes"] = found["visible"]
    card["power"].update(found["power"])
    card["ecc"].update(found["ecc"])
    if card["partition"] or found["compute"] in DIVIDED:
        known = card["partition"] or {"count": None, "instances": []}
        card["partition"] = {**known, "compute": found["compute"], "memory": found["memory"]}


def _complete(host: Host, card: Device, found: Attributes, memory_total_bytes: Optional[int]) -> None:
    """Fill in what several sources decide together: the chip, its memory, its partitions."""
    ids = card["pci"] or {}
    number = to_int("0x" + (ids.get("device_id") or ""))
    chip = None if number is None else chips.identify("amd", number)
    if chip:
        card["architecture"] = card["architecture"] or chip.architecture
        card["generation"] = card["generation"] or chip.generation
    target = card["architecture"] or ""
    card["generation"] = card["generation"] or next(
        (generation for start, generation in _GENERATIONS.items() if target.startswith(start)), None
    )
    if ids.get("device_id") in VIRTUAL_FUNCTIONS or found.get("virtual"):
        card["virtualization"] = "sriov_vf"
    partition = card["partition"]
    if partition and (partition["count"] or 0) < 2 and partition["compute"] not in DIVIDED:
        card["partition"] = None
    vram, gtt = found.get("vram_total"), found.get("gtt_total") or card["gtt_bytes"]
    known = card["memory_total_bytes"]
    accelerator = ids.get("device_id") in ACCELERATOR_APUS
    card["integrated"] = not accelerator and _is_apu(card, bool(chip and chip.integrated), found)
    card["unified_memory"] = accelerator or card["integrated"]
    if not card["unified_memory"]:
        card["gtt_bytes"] = None
        card["memory_total_bytes"] = vram or known
        card["memory_used_bytes"] = found["vram_used"] if vram else card["memory_used_bytes"]
        _bound_partitions(card)
        return
    if accelerator:
        # All of the memory is the host's; kfd tells which part lies in this package.
        total = vram or known or gtt
        card["memory_used_bytes"] = found.get("vram_used") if vram else None
    else:
        # The carve-out and the mapped system memory are one memory: the larger, never the sum.
        card["carve_out_bytes"] = vram
        total = max((size for size in (vram, gtt, known) if size), default=None)
        card["memory_used_bytes"] = found.get("gtt_used" if (gtt or 0) > (vram or 0) else "vram_used")
    card["gtt_bytes"] = gtt
    card["memory_total_bytes"] = min(total, memory_total_bytes) if total and memory_total_bytes else total


def _bound_partitions(card: Device) -> None:
    """No partition has more than its share of the card."""
    partition, total = card["partition"], card["memory_total_bytes"]
    instances = partition["instances"] if partition and total else []
    for instance in instances:
        if instance["memory_total_bytes"]:
            instance["memory_total_bytes"] = min(instance["memory_total_bytes"], total // len(instances))


def _is_apu(card: Device, listed: bool, found: Attributes) -> bool:
    """By gfx target; where there is none, by the small carve-out beside much mapped memory (ollama's rule).

    kfd marks the APUs that are one node with their processors (`unified_memory`).
    """
    if listed or card["unified_memory"] or card["architecture"] in APU_TARGETS:
        return True
    vram, gtt = found.get("vram_total"), found.get("gtt_total")
    if card["architecture"] is not None or vram is None or gtt is None or found["board"]:
        return False
    return bool(vram <= 4 << 30 and gtt >= 8 << 30 and gtt >= 4 * vram)


def _judge(host: Host, card: Device, failure: Optional[str], answered: bool) -> None:
    driver = card["driver_bound"]
    reason = None
    if driver is None:
        reason = "no driver is bound"
    elif driver != "amdgpu":
        reason = f"bound to {driver}"
    elif failure:
        reason = failure
        card["health"] = "error"
    else:
        card["health"] = "ok" if answered else None
        reason = INTEGRATED_REASON if card["integrated"] and not host.integrated else None
    card["unusable_reason"] = reason
    card["usable"] = reason is None


def _finish_tools(pending: Pending, host: Host, devices: List[Device]) -> Optional[str]:
    """Merge what amd-smi or rocm-smi says, recorded or asked now; returns the driver's version by it."""
    text = None
    tool, ms = amd_smi.AMD_SMI, 0
    for name in (amd_smi.AMD_SMI, amd_smi.ROCM_SMI):
        host.report.probe(name, "absent", NOT_ASKED if _cards(devices) else "no AMD device")
    if pending.smi_path is not None:
        try:
            with open(pending.smi_path, "rb") as stream:
                text = stream.read().decode("utf-8", "replace")
        except OSError as problem:
            host.report.probe(tool, "error", f"{pending.smi_path} cannot be read: {problem.strerror}")
        except ValueError:
            host.report.probe(tool, "error", f"{pending.smi_path!r} is no path")
    elif _is_wanted(host, _cards(devices)):
        tool, text, ms = _ask(host)
    if text is not None:
        try:
            tool, records, version = amd_smi.parse(text)
        except ValueError as problem:
            host.report.probe(tool, "error", f"no facts in the output: {problem}", ms)
        else:
            host.report.probe(tool, "ok", None, ms)
            merge(devices, _placed(host, tool, records, _cards(devices)))
            return version
    return None


def _is_wanted(host: Host, cards: List[Device]) -> bool:
    """Say whether the tools are worth the second that they take.

    They are asked for a card whose memory nobody told, and for its name where there is no pci.ids to find it in; so an
    ordinary node pays nothing. They wake cards that sleep.
    """
    driven = [card for card in cards if card["driver_bound"] == "amdgpu"]
    if any(_asleep(card) for card in driven) and not host.wake:
        return False
    named = any(host.exists(path) for path in pci.PCI_IDS)
    return any(card["memory_total_bytes"] is None or not (card["name"] or named) for card in driven)


def _ask(host: Host) -> Tuple[str, Optional[str], int]:
    """Return which tool answered, with what, and in how many milliseconds."""
    for tool, command in ((amd_smi.AMD_SMI, amd_smi.AMD_SMI_COMMAND), (amd_smi.ROCM_SMI, amd_smi.ROCM_SMI_COMMAND)):
        outcome = host.start(*command).finish()
        if outcome.status == "ok":
            return tool, outcome.stdout, outcome.ms
        host.report.probe(tool, outcome.status, outcome.message, outcome.ms)
    return amd_smi.AMD_SMI, None, 0


def _placed(host: Host, tool: str, records: List[Device], cards: List[Device]) -> List[Device]:
    """Return the records that have a place: an address, a card's UUID, or the order of the bus when all have none.

    Without any card every record is a card of its own.
    """
    lost = [
        record
        for record in records
        if record["pci_bus_id"] is None
        and all(record["uuid"] is None or record["uuid"] != card["uuid"] for card in cards)
    ]
    if not lost or not cards:
        return records
    driven = sorted(
        (card for card in cards if card["driver_bound"] == "amdgpu" and card["pci_bus_id"]),
        key=lambda card: str(card["pci_bus_id"]),
    )
    # Both tools list the cards in the order of their addresses.
    if len(lost) == len(records) == len(driven) and all(map(_may_be, lost, driven)):
        for position, record in enumerate(lost):
            record["pci_bus_id"] = driven[position]["pci_bus_id"]
        return records
    host.report.error(tool, "it does not say which device is which: there is no PCI address in its output")
    return [record for record in records if record not in lost]


def _may_be(record: Device, card: Device) -> bool:
    ids = [(device["pci"] or {}).get("device_id") for device in (record, card)]
    return None in ids or ids[0] == ids[1]


def _cards(devices: List[Device]) -> List[Device]:
    return [device for device in devices if device["vendor"] == "amd"]


def _asleep(card: Device) -> bool:
    return card["power_state"] in ("suspended", "suspending")


def _discovered(host: Host, folder: str) -> Optional[str]:
    """Return the gfx target by the version of the graphics core that the card itself announces."""
    major, minor, revision = (host.integer(folder, GRAPHICS_CORE, part) for part in ("major", "minor", "revision"))
    if major is None or minor is None or revision is None:
        return None
    if (major, minor) >= (11, 5) and 0 <= minor < 16 and 0 <= revision < 16:
        return kfd.gfx_target(major * 10000 + minor * 100 + revision)
    return _CORE_TARGETS.get((major, minor, revision))


def _name(text: Optional[str]) -> Optional[str]:
    return text[:200] if text and text.isprintable() and text.upper() != "N/A" else None


def _bounded(number: Optional[int]) -> Optional[int]:
    return number if number is not None and 0 <= number < kfd.LIMIT else None


def _positive(host: Host, folder: str, name: str) -> Optional[int]:
    return _bounded(host.integer(folder, name)) or None


def _watts(microwatts: Optional[int]) -> Optional[float]:
    if microwatts is None or not 0 <= microwatts < 10**12:
        return None
    return microwatts // 10**6 if microwatts % 10**6 == 0 else microwatts / 10**6


def _rocm_version(host: Host) -> Optional[str]:
    """Return ROCm's version: of the default installation, else of the newest one below /opt."""
    folders = sorted((name for name in host.names("opt") if name.startswith("rocm-")), key=_numbers, reverse=True)
    for folder in ("rocm", *folders):
        match = re.match(r"^[0-9]+(\.[0-9]+)+", host.text("opt", folder, ".info", "version") or "")
        if match:
            return match.group(0)
    return None


def _numbers(name: str) -> List[int]:
    return [int(part) for part in re.findall(r"[0-9]{1,9}", name)]
