# SPDX-License-Identifier: Apache-2.0
"""NVIDIA: NVML through nvidia-ml-py, nvidia-smi where NVML cannot be asked, and what the kernel module says."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware import chips
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    Device,
    bus_id,
    merge,
    new_device,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.nvidia_answer import Answer, Record
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Child, Command, Host, Outcome

DRIVER = "proc/driver/nvidia"
ASLEEP = "it is asleep; gather the facts with wake: true to wake it"
WOULD_WAKE = "not asked, it would wake the GPUs that are asleep"
FAULTS = {
    "lost": "the GPU is lost and comes back with a reboot",
    "reset_required": "the GPU requires a reset",
    "error": "the GPU does not answer",
}
RECOVERY = {
    "reset": ("reset_required", "the GPU requires a reset"),
    "drain and reset": ("reset_required", "the driver wants the GPU drained and reset"),
    "reboot": ("error", "the driver wants the node rebooted to recover the GPU"),
}
# GPUs that have no memory of their own; NVML then reports the memory's size as not supported.
UNIFIED_NAMES = ("(nvgpu)", "gb10", "thor", "tegra", "orin")
LIBRARY = "libnvidia-ml.so.1"
WSL_DEVICE = "dev/dxg"
WSL_FOLDERS = ("usr/lib/wsl/lib", "usr/lib/wsl/drivers")
LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "run/opengl-driver/lib",
)
# What NVML knows better than the tables by PCI id and than an idle link.
BETTER = ("name", "architecture", "generation", "compute_units", "virtualization")
MAX_LINKS = 8
# The share of the time after which NVML's child gives up GPUs that do not answer, and tells of the others.
ANSWER_SHARE = 0.9

_MODULE_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)")
_LIBRARY_FILE = re.compile(r"^libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)$")
# Product names in the place of a PCI id: compute capability (None where the name alone does not decide) and generation.
_NAMES: Tuple[Tuple[str, Optional[str], str], ...] = (
    (r"\bG?B300\b", "10.3", "blackwell"),
    (r"\bG?B[12]00\b", "10.0", "blackwell"),
    (r"\bGB10\b", "12.1", "blackwell"),
    (r"\bThor\b", "11.0", "blackwell"),
    (r"\bRTX (?:50[5-9]0|PRO [0-9]{4})\b|\bBlackwell\b", "12.0", "blackwell"),
    (r"\bG?H(?:100|200|800|20)\b", "9.0", "hopper"),
    (r"\bRTX 40[5-9]0\b|\bL(?:2|4|20|40S?|40G)\b|\bAda\b", "8.9", "ada"),
    (r"\bOrin\b", "8.7", "ampere"),
    (r"\bA(?:100|800|30)\b", "8.0", "ampere"),
    (r"\bRTX 30[5-9]0\b|\bA(?:2|10|10G|10M|16|40)\b|\bRTX A[0-9]{3,4}\b", "8.6", "ampere"),
    (r"\bRTX 20[5-9]0\b|\bGTX 16[0-9]0\b|\bT(?:4|4G|400|600|1000)\b|\bRTX [3-8]000\b", "7.5", "turing"),
    (r"\bXavier\b", "7.2", "volta"),
    (r"\bV100S?\b|\bTITAN V\b", "7.0", "volta"),
    (r"\b(?:P100|GP100)\b", "6.0", "pascal"),
    (r"\bG(?:TX?) 10[0-9]0\b|\bP(?:4|6|40|[1-6][0-9]{3})\b|\bTITAN Xp?\b", "6.1", "pascal"),
    (r"\bGTX (?:9[0-9]0|TITAN X)\b|\bM(?:4|6|40|60)\b", "5.2", "maxwell"),
    (r"\bK80\b", "3.7", "kepler"),
)
# Of these generations every chip has the same compute capability.
_CAPABILITIES = {"volta": "7.0", "turing": "7.5", "ada": "8.9", "hopper": "9.0"}


class Pending(NamedTuple):
    """What was started for NVIDIA: the probes that run, and what was read of the driver."""

    loaded: Optional[str]
    flavour: Optional[str]
    library: Optional[str]
    document: Optional[str]
    query: Optional[Child]
    smi: Optional[Tuple[Command, Command]]
    asleep: List[str]
    information: Optional[Child]


def start(host: Host, devices: List[Device], xml_path: Optional[str], pynvml_source: Optional[str]) -> Pending:
    """Start NVML's child, or nvidia-smi where NVML cannot be asked at all.

    `xml_path` is a recorded output of nvidia-smi to read in the place of both, `pynvml_source` the source text of
    nvidia-ml-py, None to use the node's own. GPUs that sleep are left alone unless `host.wake` is set.
    """
    loaded, flavour = loaded_module(host)
    library = _library_version(host)
    own = [device for device in devices if device["vendor"] == "nvidia" and device["driver_bound"] == "nvidia"]
    sleeping = [device for device in own if device["power_state"] == "suspended" and not host.wake]
    asleep = [device["pci_bus_id"] for device in sleeping]
    query, smi = None, None
    if xml_path is not None:
        host.report.probe("nvml", "absent", "a recorded output of nvidia-smi is read")
    elif not _present(host, devices, library):
        _not_asked(host, "no NVIDIA device")
    elif own and len(asleep) == len(own):
        _not_asked(host, "every NVIDIA GPU is asleep")
    elif not host.live:
        _not_asked(host, "a recorded tree has no libraries and programs")
    elif pynvml_source is None and importlib.util.find_spec("pynvml") is None:
        host.report.probe("nvml", "absent", "nvidia-ml-py is not on the node")
        if asleep:
            host.report.probe("nvidia_smi", "absent", WOULD_WAKE)
        else:
            smi = _start_smi(host)
    else:
        known = [device["pci_bus_id"] for device in own if device["pci_bus_id"] not in asleep]
        awake = known if asleep else None
        libraries = _wsl_libraries(host)
        seconds = host.remaining() * ANSWER_SHARE
        query = host.child(lambda: _query(pynvml_source, known, awake, libraries, seconds), "NVML")
    information = None
    addresses = [name for name in host.names(DRIVER, "gpus") if bus_id(name) not in asleep]
    if addresses and host.live:
        # The driver takes its locks and wakes the GPU for this file (nv_procfs_read_gpu_info of its open modules).
        information = host.child(lambda: _information(host, addresses), "the NVIDIA driver")
    return Pending(loaded, flavour, library, xml_path, query, smi, asleep, information)


def finish(pending: Pending, host: Host, devices: List[Device], memory_total_bytes: Optional[int]) -> Dict[str, Any]:
    """Add what NVIDIA's sources know to `devices` and return the driver's facts.

    `memory_total_bytes` is the host's memory, which unified memory is a part of.
    """
    answer = _collect(pending, host)
    listed = {record.get("pci_bus_id") for record in answer.records}
    _integrate(devices, [judge(record, memory_total_bytes) for record in answer.records])
    _add_lost(devices, answer, listed)
    _add_information(pending, host, devices)
    _complete(devices)
    _explain(devices, pending, answer)
    library = pending.library or answer.library_version
    if pending.library and answer.library_version and _differ(pending.library, answer.library_version):
        # The file that the loader takes is not always the one in the usual folder.
        library = answer.library_version
    loaded = pending.loaded
    mismatch = answer.mismatch or _differ(loaded, library)
    return {
        "version": answer.driver_version or loaded,
        "library_version": library,
        "kernel_module_version": loaded,
        "module_flavour": pending.flavour,
        "cuda_version": answer.cuda_version,
        "mismatch": mismatch,
        "reboot_reason": _reboot_reason(host, devices, loaded, library, mismatch),
    }


# the driver


def _present(host: Host, devices: List[Device], library: Optional[str]) -> bool:
    """A GPU on the bus, a loaded module (also without PCI: Tegra, WSL), or the driver's library."""
    return (
        any(device["vendor"] == "nvidia" for device in devices)
        or library is not None
        or host.exists(DRIVER, "version")
        or host.exists("sys/module/nvgpu")
        or host.exists(WSL_DEVICE)
    )


def loaded_module(host: Host) -> Tuple[Optional[str], Optional[str]]:
    """Return the loaded module's version and flavour, `open` or `proprietary`."""
    text = host.text(DRIVER, "version") or ""
    match = _MODULE_VERSION.search(text)
    if match:
        return match.group(1), "open" if "Open Kernel Module" in text else "proprietary"
    # P: the module's licence is not one of the kernel's; the open one's is "Dual MIT/GPL".
    taint = host.text("sys/module/nvidia/taint")
    flavour = None if taint is None else "proprietary" if "P" in taint else "open"
    return host.text("sys/module/nvidia/version") or None, flavour


def _library_version(host: Host) -> Optional[str]:
    """Return the version in the name of the file that the library's link leads to."""
    for folder in LIBRARY_FOLDERS:
        path = os.path.join(folder, LIBRARY)
        for _ in range(MAX_LINKS):
            match = _LIBRARY_FILE.match(os.path.basename(path))
            if match:
                return match.group(1)
            try:
                target = os.readlink(host.path(path))
            except OSError:
                break
            # An absolute link means a file below the root.
            path = os.path.normpath(os.path.join("/", os.path.dirname(path), target)).lstrip("/")
    return None


def _wsl_libraries(host: Host) -> List[str]:
    """Return NVML as Windows hands it to WSL; a library of the distribution does not work there."""
    if not host.exists(WSL_DEVICE):
        return []
    folders = [WSL_FOLDERS[0], *(os.path.join(WSL_FOLDERS[1], name) for name in host.names(WSL_FOLDERS[1]))]
    return [host.path(folder, LIBRARY) for folder in folders if host.exists(folder, LIBRARY)]


def _differ(loaded: Optional[str], library: Optional[str]) -> bool:
    """nvidia-smi shortens the library's version (570.124 of 570.124.06), so the shorter one decides."""
    if loaded is None or library is None:
        return False
    left, right = loaded.split("."), library.split(".")
    shared = min(len(left), len(right))
    return left[:shared] != right[:shared]


def _reboot_reason(
    host: Host, devices: List[Device], loaded: Optional[str], library: Optional[str], mismatch: bool
) -> Optional[str]:
    if mismatch:
        module = "module" if loaded is None else f"module {loaded}"
        other = library is None or library == loaded
        installed = "another version of its library" if other else f"its library {library}"
        return f"NVIDIA's kernel {module} is loaded and {installed} is installed"
    nvidia = [device for device in devices if device["vendor"] == "nvidia"]
    if library is not None and any(device["driver_bound"] == "nouveau" for device in nvidia):
        return f"nouveau is bound to a GPU and NVIDIA's driver {library} is installed"
    packages = [name for name in (host.text("run/reboot-required.pkgs") or "").split() if "nvidia" in name]
    if packages:
        return f"the distribution asks for it because of {', '.join(sorted(set(packages)))}"
    for device in nvidia:
        if device["health"] == "reset_required" or device["unusable_reason"] == RECOVERY["reboot"][1]:
            return f"GPU {device['pci_bus_id'] or device['index']}: {device['unusable_reason']}"
    return None


def _information(host: Host, addresses: Sequence[str]) -> Dict[str, Dict[str, str]]:
    """Read what the driver tells of each GPU in /proc, by PCI address."""
    found = {}
    for address in addresses:
        lines = (host.text(DRIVER, "gpus", address, "information") or "").splitlines()
        found[address] = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return found


def _add_information(pending: Pending, host: Host, devices: List[Device]) -> None:
    """Fill in what /proc/driver/nvidia/gpus knows, which is there without NVML as well."""
    if pending.information is not None:
        outcome = pending.information.finish()
        known = outcome.value if outcome.status == "ok" else {}
    elif host.live:
        known = {}
    else:
        known = _information(host, host.names(DRIVER, "gpus"))
    for folder, values in known.items():
        address = bus_id(folder) or bus_id(values.get("Bus Location"))
        if address is None or not values:
            continue
        uuid = values.get("GPU UUID")
        minor = values.get("Device Minor", "")
        name = values.get("Model")
        found = new_device(
            "nvidia",
            address,
            name=None if name in (None, "", "Unknown") else name,
            # Question marks stand for what the driver has not read yet.
            uuid=uuid if uuid and "?" not in uuid else None,
            device_node=f"/dev/nvidia{minor}" if minor.isdigit() else None,
            driver_bound="nvidia",
        )
        merge(devices, [found])
        if values.get("GPU Excluded") == "Yes":
            for device in devices:
                if device["pci_bus_id"] == address:
                    device.update(usable=False, unusable_reason="the driver is told to leave it out (excluded)")


# what is asked


def _not_asked(host: Host, message: str) -> None:
    for source in ("nvml", "nvidia_smi"):
        host.report.probe(source, "absent", message)


def _start_smi(host: Host) -> Tuple[Command, Command]:
    # The compute capability is in no document.
    return (
        host.start("nvidia-smi", "-q", "-x"),
        host.start("nvidia-smi", "--query-gpu=pci.bus_id,compute_cap", "--format=csv,noheader"),
    )


def _query(*arguments: Any) -> Dict[str, Any]:
    # Only the child pays for what it is made of.
    from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvml  # noqa: PLC0415

    return nvml.query(*arguments)


def _smi() -> Any:
    """Return the parsers of nvidia-smi's output, which few nodes need."""
    from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvidia_smi  # noqa: PLC0415

    return nvidia_smi


def _collect(pending: Pending, host: Host) -> Answer:
    if pending.document is not None:
        return _read_document(host, pending.document)
    if pending.smi is not None:
        return _finish_smi(host, pending.smi)
    answer = Answer()
    if pending.query is None:
        answer.problem = host.report.probes["nvml"]["message"]
        return answer
    cause = _finish_nvml(host, pending.query.finish(), answer)
    status = host.report.probes["nvml"]["status"]
    if status == "ok":
        reason = "not asked, NVML answered"
    elif status == "timeout":
        # The same driver would keep nvidia-smi just as long.
        reason = "not asked, NVML did not answer"
    elif cause == "mismatch" or (cause == "driver not loaded" and not host.exists(WSL_DEVICE)):
        reason = "not asked, it would say the same as NVML"
    elif pending.asleep:
        reason = WOULD_WAKE
    else:
        return _finish_smi(host, _start_smi(host), answer)
    host.report.probe("nvidia_smi", "absent", reason)
    return answer


def _finish_nvml(host: Host, outcome: Outcome, answer: Answer) -> Optional[str]:
    """Put NVML's answer into `answer`; returns what kept NVML from starting (see nvml.CAUSES)."""
    found = outcome.value if isinstance(outcome.value, dict) else {}
    answer.library_version = found.get("library_version")
    status, message = outcome.status, outcome.message
    cause: Optional[str] = found.get("cause")
    if "failure" in found:
        message = found["failure"]
        # Without a library or a loaded driver there is nothing that could have failed.
        loaded = host.exists(DRIVER) or host.exists(WSL_DEVICE)
        absent = cause == "no library" or (cause == "driver not loaded" and not loaded)
        status = "absent" if absent else "error"
        answer.mismatch = cause == "mismatch"
    host.report.probe("nvml", status, message, outcome.ms)
    answer.problem = message
    if status != "ok":
        return cause
    answer.driver_version = found["driver_version"]
    answer.cuda_version = found["cuda_version"]
    answer.records = found["records"]
    answer.lost = found["lost"]
    if answer.lost:
        answer.problem = "; ".join(f"GPU {_called(record)}: {record['reason']}" for record in answer.lost)
        host.report.error("nvml", answer.problem)
    else:
        # For a GPU that is on the bus all the same.
        answer.problem = "NVML lists others only" if answer.records else "NVML lists no GPU"
    return None


def _called(record: Record) -> Any:
    return record["index"] if record["index"] is not None else record["pci_bus_id"]


def _read_document(host: Host, path: str) -> Answer:
    try:
        with open(path, "rb") as stream:
            answer = _smi().parse(stream.read().decode("utf-8", "replace"))
    except OSError as problem:
        answer = Answer()
        answer.problem = f"{path} cannot be read: {problem.strerror}"
    host.report.probe("nvidia_smi", "error" if answer.problem else "ok", answer.problem)
    return answer


def _finish_smi(host: Host, commands: Tuple[Command, Command], earlier: Optional[Answer] = None) -> Answer:
    outcome = commands[0].finish()
    answer = _smi().parse(outcome.stdout + ("" if outcome.status == "ok" else "\n" + outcome.stderr))
    if outcome.status == "ok":
        if not answer.records and answer.problem is None:
            answer.problem = "nvidia-smi lists no GPU"
        outcome.status, outcome.message = ("error" if answer.problem else "ok"), answer.problem
    else:
        answer.problem = outcome.message
        if outcome.status == "absent" and earlier is not None:
            answer.problem = earlier.problem
    if earlier is not None:
        answer.library_version = earlier.library_version or answer.library_version
    host.report.probe("nvidia_smi", outcome.status, outcome.message, outcome.ms)
    capabilities = commands[1].finish()
    if capabilities.status == "ok":
        _smi().add_capabilities(answer.records, capabilities.stdout)
    if any(instance["uuid"] is None for record in answer.records for instance in record["mig"]["instances"]):
        # MIG devices are used by their UUIDs, which only this list has.
        _smi().add_listing(answer.records, host.start("nvidia-smi", "-L").finish().stdout)
    return answer


# what it means


def judge(record: Record, memory_total_bytes: Optional[int]) -> Device:
    """Return the device that a record of NVML or nvidia-smi stands for: what it is, and what it is good for."""
    name = record["name"]
    named = any(part in (name or "").lower() for part in UNIFIED_NAMES)
    missing = bool(record.get("memory_unsupported")) and record.get("memory_total_bytes") is None
    # ATS alone proves nothing: GB200 uses it and has its own memory, which NVML then reports.
    unified = missing and (record.get("addressing") == "ats" or named)
    device_id = (record.get("pci") or {}).get("device_id")
    architecture, generation = _chip(device_id, name, record.get("product_architecture"))
    health, reason = _verdict(record)
    # What a GPU without health lists is of no use either.
    mig = {**record["mig"], "instances": record["mig"]["instances"] if health == "ok" else []}
    _mark_shared(mig["instances"])
    minor = record.get("minor")
    return new_device(
        "nvidia",
        record["pci_bus_id"],
        index=record["index"],
        uuid=record["uuid"],
        name=name,
        architecture=record.get("architecture") or architecture,
        generation=record.get("generation") or generation,
        pci=record.get("pci"),
        compute_units=record.get("compute_units"),
        memory_total_bytes=memory_total_bytes if unified else record.get("memory_total_bytes"),
        memory_used_bytes=record.get("process_bytes") if unified else record.get("memory_used_bytes"),
        memory_reserved_bytes=None if unified else record.get("memory_reserved_bytes"),
        memory_bar_bytes=record.get("memory_bar_bytes"),
        unified_memory=unified,
        integrated=unified,
        device_node=None if minor is None else f"/dev/nvidia{minor}",
        health=health,
        virtualization=record.get("virtualization"),
        persistence_mode=record.get("persistence_mode"),
        compute_mode=record.get("compute_mode"),
        ecc=record["ecc"],
        power=record["power"],
        # The link of a chip to itself says nothing.
        pcie=dict.fromkeys(record["pcie"]) if unified else record["pcie"],
        mig=mig,
        links=record["links"],
        fabric=record.get("fabric"),
        usable=reason is None,
        unusable_reason=reason,
    )


def _verdict(record: Record) -> Tuple[str, Optional[str]]:
    """Return the health and why the GPU is not usable."""
    if record.get("health"):
        return record["health"], FAULTS[record["health"]]
    if record.get("recovery"):
        return RECOVERY[record["recovery"]]
    if record.get("virtualization") == "vgpu_host":
        return "ok", "it serves virtual machines (vGPU host)"
    if record["mig"]["mode"]:
        if record["mig"]["instances"]:
            return "ok", "MIG is enabled, its instances are used in its place"
        return "ok", "MIG is enabled and has no instances"
    if record.get("compute_mode") == "prohibited":
        return "ok", "its compute mode is prohibited"
    return "ok", None


def _mark_shared(instances: List[Record]) -> None:
    """Compute instances of one GPU instance have the same memory, which each of them reports."""
    owners = [instance["gpu_instance_id"] for instance in instances]
    for instance in instances:
        owner = instance["gpu_instance_id"]
        instance["memory_shared"] = owner is not None and owners.count(owner) > 1


def _chip(
    device_id: Optional[str], name: Optional[str], product_architecture: Optional[str]
) -> Tuple[Optional[str], Optional[str]]:
    """Return compute capability and generation by the PCI id, else by what the product is called."""
    generation = product_architecture.lower().split()[0] if product_architecture else None
    chip = chips.identify("nvidia", int(device_id, 16)) if device_id else None
    if chip is not None and generation in (None, chip.generation):
        return chip.architecture, chip.generation
    for pattern, capability, known in _NAMES:
        if name and re.search(pattern, name) and generation in (None, known):
            return capability, known
    return _CAPABILITIES.get(generation or ""), generation


def _integrate(devices: List[Device], found: List[Device]) -> None:
    for record in found:
        for device in devices:
            if record["pci_bus_id"] is not None and record["pci_bus_id"] == device["pci_bus_id"]:
                for key in BETTER:
                    device[key] = record[key] if record[key] is not None else device[key]
                known = {key: value for key, value in record["pcie"].items() if value is not None}
                device["pcie"] = record["pcie"] if record["unified_memory"] else {**device["pcie"], **known}
    merge(devices, found)


def _add_lost(devices: List[Device], answer: Answer, listed: Any) -> None:
    """List the GPUs that could not be opened, as the PCI devices that they are where that is certain."""
    unlisted = [
        device
        for device in devices
        if device["vendor"] == "nvidia" and device["driver_bound"] == "nvidia" and device["pci_bus_id"] not in listed
    ]
    for record in answer.lost:
        same = [device for device in unlisted if device["pci_bus_id"] == record["pci_bus_id"]]
        if record["pci_bus_id"] is None and len(answer.lost) == len(unlisted) == 1:
            same = unlisted
        reason = FAULTS["error"] if record["health"] == "error" else FAULTS.get(record["health"])
        reason = f"{reason}: {record['reason']}" if reason else f"it cannot be opened: {record['reason']}"
        known = {"index": record["index"], "health": record["health"], "unusable_reason": reason}
        if same:
            same[0].update({key: value for key, value in known.items() if value is not None})
        elif record["pci_bus_id"] is not None or not unlisted:
            merge(devices, [new_device("nvidia", record["pci_bus_id"], **known)])


def _complete(devices: List[Device]) -> None:
    """Say by the PCI id what a GPU is that the driver does not list, and what is at the other end of a link."""
    own = [device for device in devices if device["vendor"] == "nvidia"]
    addresses = {device["pci_bus_id"] for device in own}
    for device in own:
        architecture, generation = _chip((device["pci"] or {}).get("device_id"), device["name"], None)
        device["architecture"] = device["architecture"] or architecture
        device["generation"] = device["generation"] or generation
        for link in device["links"]:
            if link["peer_type"] is None and link["peer_bus_id"] in addresses:
                link["peer_type"] = "gpu"


def _explain(devices: List[Device], pending: Pending, answer: Answer) -> None:
    for device in devices:
        if device["vendor"] != "nvidia" or device["usable"] or device["unusable_reason"]:
            continue
        driver = device["driver_bound"]
        if driver is None:
            device["unusable_reason"] = "no driver is bound"
        elif driver != "nvidia":
            device["unusable_reason"] = f"bound to {driver}"
        elif device["pci_bus_id"] in pending.asleep:
            device["unusable_reason"] = ASLEEP
        else:
            device["unusable_reason"] = f"the NVIDIA driver does not list it: {answer.problem or 'no reason given'}"
