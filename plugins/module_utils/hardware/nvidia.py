# SPDX-License-Identifier: Apache-2.0
"""NVIDIA: NVML through nvidia-ml-py, `nvidia-smi -q -x` where NVML cannot be asked, and what the kernel module says."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import Any, Dict, Iterable, List, Optional
from xml.etree import ElementTree

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    Device,
    bus_id,
    merge,
    new_device,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host, Outcome, forked

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
        "err!",
        "gpu is lost",
        "gpu requires reset",
        "gpu requires restart",
        "insufficient permissions",
        "function not found",
        "requested functionality has been deprecated",
    )
)
FAULTS = {
    "gpu is lost": "the GPU is lost and comes back with a reboot",
    "gpu requires reset": "the GPU requires a reset",
    "gpu requires restart": "the GPU requires a reset",
}
# Chips whose GPU has no memory of its own; NVML then reports the memory's size as not supported.
UNIFIED_NAMES = ("(nvgpu)", "gb10", "thor", "tegra", "orin")
LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
)
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# More links than any GPU has; NVML refuses the first number that does not exist.
NVLINK_LIMIT = 36
ADDRESSING_ATS = 2

_SIZE = re.compile(r"^([0-9]{1,15})(?:\.[0-9]+)?\s*(B|KiB|MiB|GiB|TiB)$")
_MODULE_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)")
_LIBRARY_FILE = re.compile(r"^libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)$")
_LIBRARY_TEXT = re.compile(r"NVML library version: ([0-9.]+)")

Raw = Dict[str, Any]


class Answer:
    """What one source said of all GPUs: raw records, the versions it knows, and the sentence that explains a gap."""

    def __init__(self) -> None:
        self.records: List[Raw] = []
        self.driver_version: Optional[str] = None
        self.library_version: Optional[str] = None
        self.cuda_version: Optional[str] = None
        self.problem: Optional[str] = None


def collect(
    host: Host,
    devices: List[Device],
    memory_total_bytes: Optional[int],
    xml_path: Optional[str] = None,
    pynvml: Optional[str] = None,
) -> Dict[str, Any]:
    """Add what NVIDIA's sources know to `devices` and return the driver's facts.

    `memory_total_bytes` is the host's memory, `xml_path` a recorded `nvidia-smi -q -x` to read in the place of both
    sources, `pynvml` the path of nvidia-ml-py's module on the node.
    """
    kernel_module = _kernel_module(host)
    library = _library_version(host)
    answer = Answer()
    if xml_path is not None:
        host.report.probe("nvml", "absent", "a recorded nvidia-smi document is read")
        answer = _read_document(host, xml_path)
    elif _present(host, devices):
        answer = _ask(host, pynvml)
    else:
        for source in ("nvml", "nvidia_smi"):
            host.report.probe(source, "absent", "no NVIDIA device")
    merge(devices, [_device(raw, memory_total_bytes) for raw in answer.records])
    _explain_unlisted(devices, answer)
    version = answer.library_version or library
    loaded = kernel_module["version"]
    nouveau = any(device["driver_bound"] == "nouveau" for device in devices)
    return {
        "version": answer.driver_version or loaded,
        "library_version": version,
        "kernel_module_version": loaded,
        "module_flavour": kernel_module["flavour"],
        "cuda_version": answer.cuda_version,
        "reboot_required": _differ(loaded, version)
        or (nouveau and library is not None)
        or "nvidia" in (host.text("run/reboot-required.pkgs") or ""),
    }


def wants_pynvml(host: Host, devices: List[Device]) -> bool:
    """Say whether NVML could be asked here if only nvidia-ml-py were on the node."""
    driver = _kernel_module(host)["version"] is not None or _library_version(host) is not None
    return host.live and driver and _present(host, devices) and importlib.util.find_spec("pynvml") is None


def _present(host: Host, devices: List[Device]) -> bool:
    """A GPU on the bus, a loaded module (also without PCI: Tegra, WSL), or the driver's library."""
    traces = ("proc/driver/nvidia/version", "sys/module/nvgpu", "dev/dxg")
    return (
        any(device["vendor"] == "nvidia" for device in devices)
        or any(host.exists(trace) for trace in traces)
        or _library_version(host) is not None
    )


def _kernel_module(host: Host) -> Dict[str, Optional[str]]:
    text = host.text("proc/driver/nvidia/version") or ""
    match = _MODULE_VERSION.search(text)
    version = match.group(1) if match else host.text("sys/module/nvidia/version")
    flavour = None
    if match:
        flavour = "open" if "Open Kernel Module" in text else "proprietary"
    return {"version": version, "flavour": flavour}


def _library_version(host: Host) -> Optional[str]:
    for folder in LIBRARY_FOLDERS:
        name = os.path.basename(os.path.realpath(host.path(folder, "libnvidia-ml.so.1")))
        match = _LIBRARY_FILE.match(name)
        if match:
            return match.group(1)
    return None


def _differ(loaded: Optional[str], library: Optional[str]) -> bool:
    """nvidia-smi shortens the library's version (570.124 of 570.124.06), so the shorter one decides."""
    if loaded is None or library is None:
        return False
    left, right = loaded.split("."), library.split(".")
    shared = min(len(left), len(right))
    return left[:shared] != right[:shared]


def _ask(host: Host, pynvml: Optional[str]) -> Answer:
    answer = _ask_nvml(host, pynvml)
    status = host.report.probes["nvml"]["status"]
    if status == "ok":
        host.report.probe("nvidia_smi", "absent", "not asked, NVML answered")
        return answer
    if status == "timeout":
        # The same driver would keep nvidia-smi just as long.
        host.report.probe("nvidia_smi", "absent", "not asked, NVML did not answer")
        return answer
    return _ask_nvidia_smi(host, answer.problem)


def _device(raw: Raw, memory_total_bytes: Optional[int]) -> Device:
    """Judge one raw record: memory, MIG and health decide what it is good for."""
    name = raw["name"]
    named = any(part in (name or "").lower() for part in UNIFIED_NAMES)
    # ATS alone proves nothing: GB200 uses it and has its own memory, which NVML then reports.
    unified = raw["memory_unsupported"] and raw["memory_total_bytes"] is None and (raw["ats"] or named)
    reason = raw["fault"]
    if reason is None and raw["mig_mode"]:
        reason = "MIG is enabled, its instances are used in its place"
        if not raw["mig_instances"]:
            reason = "MIG is enabled and has no instances"
    return new_device(
        "nvidia",
        raw["pci_bus_id"],
        index=raw["index"],
        uuid=raw["uuid"],
        name=name,
        architecture=raw["architecture"],
        memory_total_bytes=memory_total_bytes if unified else raw["memory_total_bytes"],
        memory_used_bytes=raw["process_bytes"] if unified else raw["memory_used_bytes"],
        unified_memory=unified,
        integrated=unified,
        mig={"mode": raw["mig_mode"], "instances": raw["mig_instances"]},
        links=raw["links"],
        usable=reason is None,
        unusable_reason=reason,
    )


def _explain_unlisted(devices: List[Device], answer: Answer) -> None:
    listed = {raw["pci_bus_id"] for raw in answer.records}
    for device in devices:
        if device["vendor"] != "nvidia" or device["usable"] or device["unusable_reason"]:
            continue
        driver = device["driver_bound"]
        if device["pci_bus_id"] in listed:
            continue
        if driver is None:
            device["unusable_reason"] = "no driver is bound"
        elif driver != "nvidia":
            device["unusable_reason"] = f"bound to {driver}"
        else:
            cause = answer.problem or "no reason given"
            device["unusable_reason"] = f"the NVIDIA driver does not list it: {cause}"


def _raw(index: Optional[int], pci_bus_id: Optional[str]) -> Raw:
    return {
        "index": index,
        "pci_bus_id": pci_bus_id,
        "uuid": None,
        "name": None,
        "architecture": None,
        "memory_total_bytes": None,
        "memory_used_bytes": None,
        "memory_unsupported": False,
        "process_bytes": None,
        "ats": False,
        "mig_mode": None,
        "mig_instances": [],
        "links": [],
        "fault": None,
    }


# NVML


def _ask_nvml(host: Host, pynvml: Optional[str]) -> Answer:
    answer = Answer()
    if not host.live:
        host.report.probe("nvml", "absent", "a recorded tree has no libraries")
        return answer
    if pynvml is None and importlib.util.find_spec("pynvml") is None:
        host.report.probe("nvml", "absent", "nvidia-ml-py is not on the node")
        return answer
    outcome = forked(lambda: query_nvml(pynvml), host.timeout, "NVML")
    if outcome.status == "error" and "LibraryNotFound" in (outcome.message or ""):
        outcome.status = "absent"
    host.report.probe("nvml", outcome.status, outcome.message, outcome.ms)
    answer.problem = outcome.message
    if outcome.status != "ok":
        return answer
    found = outcome.value
    answer.driver_version = found["driver_version"]
    answer.library_version = found["library_version"]
    answer.cuda_version = found["cuda_version"]
    answer.records = found["records"]
    if found["failures"]:
        answer.problem = "; ".join(found["failures"])
        host.report.error("nvml", answer.problem)
    return answer


def query_nvml(pynvml: Optional[str]) -> Dict[str, Any]:
    """Ask NVML for everything; meant for a child process, since NVML may crash or never return.

    One GPU that cannot be opened costs that GPU only, one value that cannot be read that value only.
    Raises pynvml's NVMLError when NVML as a whole does not start.
    """
    nvml = _load(pynvml)
    nvml.nvmlInit()

    def ask(function: str, *arguments: Any) -> Any:
        try:
            value = getattr(nvml, function)(*arguments)
        except (nvml.NVMLError, AttributeError, TypeError):
            return None
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    library = ask("nvmlSystemGetNVMLVersion")
    cuda = ask("nvmlSystemGetCudaDriverVersion_v2")
    records, failures = [], []
    for index in range(ask("nvmlDeviceGetCount") or 0):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as problem:
            failures.append(f"GPU {index}: {problem}")
            continue
        records.append(_nvml_record(nvml, ask, handle, index))
    return {
        "driver_version": value_of(ask("nvmlSystemGetDriverVersion")),
        # NVML puts its own major version before the driver's: 12.570.124.06
        "library_version": library.partition(".")[2] if library and library.count(".") >= 2 else None,
        "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        "records": records,
        "failures": failures,
    }


def _load(pynvml: Optional[str]) -> Any:
    if pynvml is None:
        return importlib.import_module("pynvml")
    spec = importlib.util.spec_from_file_location("pynvml", pynvml)
    if spec is None or spec.loader is None:
        raise ImportError(f"{pynvml} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # It looks itself up while it is loaded.
    sys.modules["pynvml"] = module
    spec.loader.exec_module(module)
    return module


def _nvml_record(nvml: Any, ask: Any, handle: Any, index: int) -> Raw:
    pci = ask("nvmlDeviceGetPciInfo", handle)
    raw = _raw(index, bus_id(_string(pci.busId)) if pci else None)
    raw["uuid"] = value_of(ask("nvmlDeviceGetUUID", handle))
    raw["name"] = value_of(ask("nvmlDeviceGetName", handle))
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    raw["architecture"] = "{}.{}".format(*capability) if capability else None
    memory = ask("nvmlDeviceGetMemoryInfo", handle, getattr(nvml, "nvmlMemory_v2", None))
    try:
        memory = memory or nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as problem:
        raw["memory_unsupported"] = problem.value == nvml.NVML_ERROR_NOT_SUPPORTED
        raw["fault"] = FAULTS.get(str(problem).lower())
    if memory:
        raw["memory_total_bytes"], raw["memory_used_bytes"] = int(memory.total), int(memory.used)
    addressing = ask("nvmlDeviceGetAddressingMode", handle)
    raw["ats"] = getattr(addressing, "value", addressing) == ADDRESSING_ATS
    processes = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    if processes is not None:
        raw["process_bytes"] = sum(process.usedGpuMemory or 0 for process in processes)
    mode = ask("nvmlDeviceGetMigMode", handle)
    raw["mig_mode"] = bool(mode[0]) if mode else None
    if raw["mig_mode"]:
        raw["mig_instances"] = _nvml_mig(ask, handle)
    raw["links"] = _nvml_links(ask, handle)
    return raw


def _nvml_mig(ask: Any, handle: Any) -> List[Dict[str, Any]]:
    instances = []
    for slot in range(ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        instance = ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
        if instance is None:
            continue
        memory = ask("nvmlDeviceGetMemoryInfo", instance)
        _, _, profile = (ask("nvmlDeviceGetName", instance) or "").partition(" MIG ")
        instances.append(
            {
                "index": slot,
                "uuid": value_of(ask("nvmlDeviceGetUUID", instance)),
                "profile": profile or None,
                "gpu_instance_id": ask("nvmlDeviceGetGpuInstanceId", instance),
                "compute_instance_id": ask("nvmlDeviceGetComputeInstanceId", instance),
                "memory_total_bytes": int(memory.total) if memory else None,
            }
        )
    return instances


def _nvml_links(ask: Any, handle: Any) -> List[Dict[str, Any]]:
    peers: Dict[str, int] = {}
    for link in range(NVLINK_LIMIT):
        state = ask("nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        remote = ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link) if state else None
        peer = bus_id(_string(remote.busId)) if remote else None
        if peer is not None:
            peers[peer] = peers.get(peer, 0) + 1
    return [{"type": "nvlink", "peer_bus_id": peer, "count": peers[peer]} for peer in sorted(peers)]


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# nvidia-smi


def _read_document(host: Host, path: str) -> Answer:
    try:
        with open(path, "rb") as stream:
            answer = parse_document(stream.read().decode("utf-8", "replace"))
    except OSError as problem:
        answer = Answer()
        answer.problem = f"{path} cannot be read: {problem.strerror}"
    host.report.probe("nvidia_smi", "error" if answer.problem else "ok", answer.problem)
    return answer


def _ask_nvidia_smi(host: Host, earlier: Optional[str]) -> Answer:
    document = host.start("nvidia-smi", "-q", "-x")
    # Compute capability is in no XML document.
    capabilities = host.start("nvidia-smi", "--query-gpu=pci.bus_id,compute_cap", "--format=csv,noheader")
    outcome = document.finish()
    answer = parse_document(outcome.stdout) if "<nvidia_smi_log" in outcome.stdout else Answer()
    text = outcome.stdout + outcome.stderr
    library = _LIBRARY_TEXT.search(text)
    if library:
        answer.library_version = library.group(1)
    if outcome.status == "ok":
        if not answer.records and answer.problem is None:
            answer.problem = "nvidia-smi lists no GPU"
        outcome.status, outcome.message = ("error" if answer.problem else "ok"), answer.problem
    else:
        answer.problem = outcome.message
        if outcome.status == "absent" and earlier:
            answer.problem = earlier
    host.report.probe("nvidia_smi", outcome.status, outcome.message, outcome.ms)
    _add_capabilities(answer.records, capabilities.finish())
    return answer


def _add_capabilities(records: Iterable[Raw], outcome: Outcome) -> None:
    known = {}
    for line in outcome.stdout.splitlines() if outcome.status == "ok" else []:
        address, _, capability = line.partition(",")
        if re.match(r"^[0-9]+\.[0-9]+$", capability.strip()):
            known[bus_id(address)] = capability.strip()
    for raw in records:
        raw["architecture"] = known.get(raw["pci_bus_id"]) if raw["pci_bus_id"] else None


def parse_document(text: str) -> Answer:
    """Read what `nvidia-smi -q -x` printed, of any driver version, complete or not.

    A document that ends early or is damaged gives the GPUs before the damage and a sentence in `problem`.
    """
    answer = Answer()
    start = text.find("<nvidia_smi_log")
    if start < 0:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        answer.problem = f"nvidia-smi printed no document but: {first[:200]}"
        return answer
    parser: Any = ElementTree.XMLPullParser(events=("start", "end"))
    root: Any = None
    complete = False
    try:
        parser.feed(text[start:].replace("\0", ""))
        for event, element in parser.read_events():
            if event == "start":
                root = element if root is None else root
            elif element.tag == "gpu":
                answer.records.append(_document_record(element, len(answer.records)))
            elif element is root:
                complete = True
    # ValueError: characters that no encoding carries, which a corrupted file decodes to.
    except (ElementTree.ParseError, ValueError) as problem:
        if not complete:
            answer.problem = f"nvidia-smi's document is damaged: {problem}"
    if not complete and answer.problem is None:
        answer.problem = "nvidia-smi's document ends early"
    if root is not None:
        answer.driver_version = value_of(root.findtext("driver_version"))
        answer.cuda_version = value_of(root.findtext("cuda_version"))
    return answer


def _document_record(gpu: Any, index: int) -> Raw:
    raw = _raw(index, bus_id(gpu.findtext("pci/pci_bus_id")) or bus_id(gpu.get("id")))
    raw["uuid"] = value_of(gpu.findtext("uuid"))
    raw["name"] = value_of(gpu.findtext("product_name"))
    total = gpu.findtext("fb_memory_usage/total")
    raw["memory_total_bytes"] = size_of(total)
    raw["memory_used_bytes"] = size_of(gpu.findtext("fb_memory_usage/used"))
    raw["memory_unsupported"] = _plain(total) in ("n/a", "not supported")
    raw["ats"] = (gpu.findtext("addressing_mode") or "").strip() == "ATS"
    sizes = [size_of(used.text) for used in gpu.findall("processes/process_info/used_memory")]
    raw["process_bytes"] = sum(size for size in sizes if size is not None) if sizes else None
    raw["mig_mode"] = {"enabled": True, "disabled": False}.get(_plain(gpu.findtext("mig_mode/current_mig")))
    if raw["mig_mode"]:
        raw["mig_instances"] = [_document_mig(instance) for instance in gpu.findall("mig_devices/mig_device")]
    states = {_plain(element.text) for element in gpu.iter()}
    raw["fault"] = next((sentence for state, sentence in FAULTS.items() if state in states), None)
    return raw


def _document_mig(instance: Any) -> Dict[str, Any]:
    def integer(tag: str) -> Optional[int]:
        text = value_of(instance.findtext(tag))
        return int(text) if text and re.match(r"^[0-9]{1,6}$", text) else None

    return {
        "index": integer("index"),
        "uuid": value_of(instance.findtext("uuid")),
        "profile": value_of(instance.findtext("profile")),
        "gpu_instance_id": integer("gpu_instance_id"),
        "compute_instance_id": integer("compute_instance_id"),
        "memory_total_bytes": size_of(instance.findtext("fb_memory_usage/total")),
    }


def _plain(text: Optional[str]) -> str:
    return (text or "").strip().strip("[]").strip().lower()


def value_of(text: Optional[str]) -> Optional[str]:
    """Return the text of a value, None for every way in which NVIDIA's tools spell that there is none."""
    return None if _plain(text) in NULLS else (text or "").strip()


def size_of(text: Optional[str]) -> Optional[int]:
    """Return the bytes that a size such as `40960 MiB` stands for, None when there is no size."""
    match = _SIZE.match((text or "").strip())
    return int(match.group(1)) * UNITS[match.group(2)] if match else None
