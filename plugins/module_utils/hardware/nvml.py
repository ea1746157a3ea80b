# SPDX-License-Identifier: Apache-2.0
"""What NVML says of every GPU, asked through nvidia-ml-py's functions. All of it runs in a child process."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import bus_id
from ansible_collections.fleet.inference.plugins.module_utils.hardware.nvidia_answer import Record

# NVML's return codes (nvml.h) that mean more than "this value is not to be had".
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
GPU_IS_LOST = 15
RESET_REQUIRED = 16
# What it means when NVML as a whole does not start.
CAUSES = {9: "driver not loaded", 12: "no library", 18: "mismatch"}
# After one of these every further call on the same GPU fails as well, some only after a long while.
FAULTS = {GPU_IS_LOST: "lost", RESET_REQUIRED: "reset_required"}
# Field ids of nvmlDeviceGetFieldValues (nvml.h, NVML_FI_DEV_*): one call for what has no function of its own.
FIELD_NVLINKS = 91
FIELD_C2C_LINKS = 170
FIELD_RECOVERY = 230
# NVML_GPU_RECOVERY_ACTION_*: none, GPU reset, node reboot, drain P2P, drain and reset, IMEX, bus reset, reboot.
RECOVERY_ACTIONS = {1: "reset", 2: "reboot", 4: "drain and reset", 6: "reset", 7: "reboot"}
# More links than any GPU has; NVML refuses the first number that does not exist.
NVLINK_LIMIT = 36
NVLINK_PEERS = {0: "gpu", 1: "cpu", 2: "switch"}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
VIRTUALIZATION = {0: "none", 1: "passthrough", 2: "vgpu_guest", 3: "vgpu_host", 4: "vgpu_host"}
ADDRESSING = {0: "none", 1: "hmm", 2: "ats"}
FABRIC_KEYS = ("state", "status", "cluster_uuid", "clique_id", "healthy")
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
# NVML_DEVICE_ARCH_*
ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
CAPABILITIES_WITH_64_CORES = ((6, 0), (7, 0), (7, 2), (7, 5), (8, 0))
# After this share of the time the GPUs behind one that does not answer are asked beside it.
PATIENCE_SHARE = 0.2
INIT_FLAG_NO_ATTACH = 2
UNCORRECTED, VOLATILE = 1, 0


def query(
    source: Optional[str],
    known: Sequence[str] = (),
    awake: Optional[Sequence[str]] = None,
    libraries: Sequence[str] = (),
    seconds: float = 10,
) -> Dict[str, Any]:
    """Ask NVML for everything that the facts hold; meant for a child process, since NVML may crash or never return.

    `source` is nvidia-ml-py's source text, None for the node's own module. `known` are the PCI addresses of the GPUs
    that NVIDIA's driver is bound to. With `awake` only these addresses are asked and no other GPU is attached.
    `libraries` are files to take the library from before the loader looks for it. A GPU that has not answered after
    `seconds` is given up.

    One GPU that cannot be opened costs that GPU only, one value that cannot be read that value only. Returns `records`
    (device records with what is known, and what `nvidia.judge` needs), `lost` (GPUs without a record: `index`,
    `pci_bus_id`, `health`, `reason`) and the versions; when NVML does not start `failure` and `cause` (see CAUSES).
    """
    nvml = _load(source)
    for path in libraries:
        with contextlib.suppress(OSError):
            _preload(path)
            break
    try:
        if awake is None:
            nvml.nvmlInit()
        else:
            nvml.nvmlInitWithFlags(INIT_FLAG_NO_ATTACH)
    except nvml.NVMLError as problem:
        return {
            "failure": _sentence(problem),
            "cause": CAUSES.get(problem.value),
            # The library tells its own version without the driver.
            "library_version": _library_version(nvml),
        }
    cuda = _call(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    driver = _call(nvml, "nvmlSystemGetDriverVersion") or ""
    found = {
        # Tegra's has none.
        "driver_version": driver if driver[:1].isdigit() else None,
        "library_version": _library_version(nvml),
        "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    }
    if awake is None:
        questions = [_Question(nvml, index=index) for index in range(_call(nvml, "nvmlDeviceGetCount") or 0)]
    else:
        questions = [_Question(nvml, address=address) for address in awake]
    _ask_all(questions, seconds)
    complete = all(question.done for question in questions)
    # A thread that comes too late may still be at work.
    answers = [(question, question.record) for question in questions]
    records = [record for _, record in answers if record is not None]
    lost = [question.failure(seconds) for question, record in answers if record is None]
    if awake is None and lost and complete:
        listed = {record["pci_bus_id"] for record in records}
        lost = _name_the_lost(nvml, lost, [address for address in known if address not in listed])
    return {**found, "records": records, "lost": lost}


def _load(source: Optional[str]) -> Any:
    import importlib  # noqa: PLC0415  only the child needs it

    if source is None:
        return importlib.import_module("pynvml")
    import types  # noqa: PLC0415

    module = types.ModuleType("pynvml")
    # It looks itself up while it is loaded.
    sys.modules["pynvml"] = module
    exec(compile(source, "pynvml", "exec"), module.__dict__)  # noqa: S102  the collection's own nvidia-ml-py
    return module


def _preload(path: str) -> None:
    import ctypes  # noqa: PLC0415

    # The loader then finds it by its name when nvidia-ml-py asks for libnvidia-ml.so.1.
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def _call(nvml: Any, function: str) -> Any:
    """Return what a function without arguments answers, None when it fails or is not there; text is decoded."""
    try:
        value = getattr(nvml, function)()
    except Exception:
        return None
    return _string(value) if isinstance(value, bytes) else value


def _library_version(nvml: Any) -> Optional[str]:
    """NVML puts its own major version before the driver's: 12.570.124.06."""
    text = _call(nvml, "nvmlSystemGetNVMLVersion")
    return text.partition(".")[2] if text and text.count(".") >= 2 else None


def _sentence(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Question:
    """One GPU that is asked, by its index or its PCI address."""

    def __init__(self, nvml: Any, index: Optional[int] = None, address: Optional[str] = None) -> None:
        self.nvml = nvml
        self.index = index
        self.address = address
        self.done = False
        self.record: Optional[Record] = None
        self.problem: Any = None
        self.gpu: Optional[_Gpu] = None

    def ask(self) -> None:
        """Ask all of it."""
        try:
            if self.address is None:
                handle = self.nvml.nvmlDeviceGetHandleByIndex(self.index)
            else:
                handle = self.nvml.nvmlDeviceGetHandleByPciBusId(self.address.encode())
            self.gpu = _Gpu(self.nvml, handle)
            index = self.gpu.ask("nvmlDeviceGetIndex") if self.index is None else self.index
            record = self.gpu.record(index)
            self.problem = self.gpu.problem
            # A GPU that tells neither address nor UUID nor name is none that could be used.
            if any(record[key] is not None for key in ("pci_bus_id", "uuid", "name")):
                self.record = record
        except Exception as problem:
            self.problem = problem
        finally:
            self.done = True

    def failure(self, seconds: float) -> Record:
        """Return what is known of a GPU without a record."""
        address = self.address or (self.gpu.address if self.gpu is not None else None)
        if not self.done:
            reason = f"NVML gave no answer within {seconds:.2g} s"
            return {"index": self.index, "pci_bus_id": address, "health": "error", "reason": reason}
        return _failure(self.problem, self.index, address)


def _ask_all(questions: List[_Question], seconds: float) -> None:
    """Ask one GPU after the other, and go on with the next one beside a GPU that keeps NVML waiting."""
    import threading  # noqa: PLC0415  nvidia-ml-py has loaded it already

    deadline = time.monotonic() + seconds
    left = iter(questions)
    answered = threading.Semaphore(0)

    def work() -> None:
        for question in left:
            question.ask()
            answered.release()

    waiting, threads = len(questions), 0
    while waiting and time.monotonic() < deadline:
        if threads < len(questions):
            threading.Thread(target=work, daemon=True).start()
            threads += 1
        patience = seconds * PATIENCE_SHARE
        while waiting and answered.acquire(timeout=max(0.0, min(patience, deadline - time.monotonic()))):
            waiting -= 1


def _name_the_lost(nvml: Any, lost: List[Record], unlisted: List[str]) -> List[Record]:
    """Find out which PCI devices the lost indices are: asked by address, they fail in the same way."""
    named: List[Record] = []
    for address in unlisted:
        try:
            gpu = _Gpu(nvml, nvml.nvmlDeviceGetHandleByPciBusId(address.encode()))
        except nvml.NVMLError as problem:
            if problem.value != NOT_FOUND:
                named.append(_failure(problem, pci_bus_id=address))
            continue
        if gpu.ask("nvmlDeviceGetUUID") is None:
            named.append(_failure(gpu.problem, pci_bus_id=address))
    if len(named) != len(lost):
        return lost
    if len(named) == 1:
        named[0]["index"] = lost[0]["index"]
    return named


def _failure(problem: Any, index: Optional[int] = None, pci_bus_id: Optional[str] = None) -> Record:
    code = getattr(problem, "value", None)
    health = None if code == NO_PERMISSION else FAULTS.get(code, "error") if code else "error"
    reason = str(problem) if problem is not None else "it answers nothing"
    return {"index": index, "pci_bus_id": pci_bus_id, "health": health, "reason": reason}


class _Gpu:
    """One handle, of a GPU or of a MIG device; `fault` is set once NVML says that the GPU is lost or needs a reset."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle
        self.fault: Optional[int] = None
        # Why the last call gave nothing; None when the function is not there.
        self.code: Optional[int] = None
        # The first error.
        self.problem: Any = None
        self.address: Optional[str] = None

    def ask(self, function: str, *arguments: Any) -> Any:
        """Return what NVML's function answers, None when it answers nothing; text is decoded."""
        self.code = self.fault
        if self.fault is not None:
            return None
        try:
            value = getattr(self.nvml, function)(self.handle, *arguments)
        except self.nvml.NVMLError as problem:
            self.code = problem.value
            self.problem = self.problem or problem
            if problem.value in FAULTS:
                self.fault = problem.value
            return None
        # A function that this nvidia-ml-py does not have, or has with other arguments.
        except Exception:
            return None
        return _string(value) if isinstance(value, bytes) else value

    def record(self, index: Optional[int]) -> Record:
        """Return all that NVML knows of this GPU."""
        pci = self.ask("nvmlDeviceGetPciInfo")
        self.address = bus_id(_string(pci.busId)) if pci else None
        record: Record = {
            "index": index,
            "pci_bus_id": self.address,
            "uuid": self.ask("nvmlDeviceGetUUID") or None,
            "name": self.ask("nvmlDeviceGetName") or None,
            "minor": self.ask("nvmlDeviceGetMinorNumber"),
        }
        if pci:
            record["pci"] = _ids(getattr(pci, "pciDeviceId", None), getattr(pci, "pciSubSystemId", None))
        self._chip(record)
        self._memory(record)
        self._modes(record)
        self._health(record)
        record["power"] = self._power()
        record["pcie"] = {
            "generation_max": self.ask("nvmlDeviceGetMaxPcieLinkGeneration") or None,
            "generation_current": self.ask("nvmlDeviceGetCurrPcieLinkGeneration") or None,
            "width_max": self.ask("nvmlDeviceGetMaxPcieLinkWidth") or None,
            "width_current": self.ask("nvmlDeviceGetCurrPcieLinkWidth") or None,
        }
        mode = self.ask("nvmlDeviceGetMigMode")
        record["mig"] = {
            "mode": bool(mode[0]) if mode else None,
            "pending_mode": bool(mode[1]) if mode else None,
            "instances": self._mig() if mode and mode[0] else [],
        }
        record["fabric"] = self._fabric()
        fields = self._fields(FIELD_NVLINKS, FIELD_C2C_LINKS, FIELD_RECOVERY)
        # A GPU in MIG mode uses no links.
        links = [] if mode and mode[0] else self._nvlinks(fields[FIELD_NVLINKS])
        record["links"] = links + self._c2c(fields[FIELD_C2C_LINKS])
        record["recovery"] = RECOVERY_ACTIONS.get(fields[FIELD_RECOVERY] or 0)
        record["health"] = FAULTS.get(self.fault or 0)
        return record

    def _chip(self, record: Record) -> None:
        capability = self.ask("nvmlDeviceGetCudaComputeCapability")
        record["architecture"] = "{}.{}".format(*capability) if capability else None
        chip = self.ask("nvmlDeviceGetArchitecture")
        record["generation"] = ARCHITECTURES.get(getattr(chip, "value", chip))
        cores = self.ask("nvmlDeviceGetNumGpuCores")
        if cores and capability:
            record["compute_units"] = cores // _cores_each(*capability)

    def _memory(self, record: Record) -> None:
        # Version 2 tells the driver's own share apart from what is used.
        memory = self.ask("nvmlDeviceGetMemoryInfo", getattr(self.nvml, "nvmlMemory_v2", None))
        if memory is None:
            memory = self.ask("nvmlDeviceGetMemoryInfo")
            record["memory_unsupported"] = memory is None and self.code == NOT_SUPPORTED
        if memory is not None and not memory.total:
            memory, record["memory_unsupported"] = None, True
        if memory is not None:
            record["memory_total_bytes"] = int(memory.total)
            record["memory_used_bytes"] = int(memory.used)
            record["memory_reserved_bytes"] = _integer(getattr(memory, "reserved", None))
        elif record["memory_unsupported"]:
            addressing = self.ask("nvmlDeviceGetAddressingMode")
            record["addressing"] = ADDRESSING.get(getattr(addressing, "value", addressing))
            record["process_bytes"] = self._process_bytes()
        bar = self.ask("nvmlDeviceGetBAR1MemoryInfo")
        record["memory_bar_bytes"] = int(bar.bar1Total) or None if bar else None

    def _process_bytes(self) -> Optional[int]:
        """Return the sum of what the processes on this GPU use, each counted once."""
        each: Dict[int, Optional[int]] = {}
        answered = False
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            processes = self.ask(function)
            answered = answered or processes is not None
            for process in processes or []:
                each[process.pid] = process.usedGpuMemory
        sizes = [int(size) for size in each.values() if size is not None]
        return sum(sizes) if sizes or (answered and not each) else None

    def _modes(self, record: Record) -> None:
        persistence = self.ask("nvmlDeviceGetPersistenceMode")
        record["persistence_mode"] = None if persistence is None else bool(persistence)
        record["compute_mode"] = COMPUTE_MODES.get(self.ask("nvmlDeviceGetComputeMode"))
        record["virtualization"] = VIRTUALIZATION.get(self.ask("nvmlDeviceGetVirtualizationMode"))

    def _health(self, record: Record) -> None:
        mode = self.ask("nvmlDeviceGetEccMode")
        rows = self.ask("nvmlDeviceGetRemappedRows")
        # Before Ampere whole pages are retired.
        pending = rows[2] if rows else self.ask("nvmlDeviceGetRetiredPagesPendingStatus")
        record["ecc"] = {
            "mode": bool(mode[0]) if mode else None,
            "pending_mode": bool(mode[1]) if mode else None,
            "uncorrected": self.ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE) if mode and mode[0] else None,
            "remap_pending": None if pending is None else bool(pending),
            "remap_failure": bool(rows[3]) if rows else None,
        }

    def _power(self) -> Record:
        limits = self.ask("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
        return {
            "limit_watts": _watts(self.ask("nvmlDeviceGetPowerManagementLimit")),
            "default_limit_watts": _watts(self.ask("nvmlDeviceGetPowerManagementDefaultLimit")),
            "min_limit_watts": _watts(limits[0]),
            "max_limit_watts": _watts(limits[1]),
        }

    def _mig(self) -> List[Record]:
        instances: List[Record] = []
        for slot in range(self.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
            handle = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", slot)
            # An empty slot; the ones after it may hold an instance.
            if handle is None:
                continue
            instance = _Gpu(self.nvml, handle)
            _, _, profile = (instance.ask("nvmlDeviceGetName") or "").partition(" MIG ")
            attributes = instance.ask("nvmlDeviceGetAttributes_v2") or instance.ask("nvmlDeviceGetAttributes")
            size = _integer(getattr(attributes, "memorySizeMB", None))
            memory = None if size else instance.ask("nvmlDeviceGetMemoryInfo")
            instances.append(
                {
                    "index": slot,
                    "uuid": instance.ask("nvmlDeviceGetUUID") or None,
                    "profile": profile or None,
                    "gpu_instance_id": instance.ask("nvmlDeviceGetGpuInstanceId"),
                    "compute_instance_id": instance.ask("nvmlDeviceGetComputeInstanceId"),
                    "memory_total_bytes": size << 20 if size else (int(memory.total) or None if memory else None),
                    "multiprocessors": _integer(getattr(attributes, "multiprocessorCount", None)),
                }
            )
        return instances

    def _fields(self, *wanted: int) -> Dict[int, Optional[int]]:
        """Return the fields' values; None for one that this GPU or driver does not have."""
        found: Dict[int, Optional[int]] = dict.fromkeys(wanted)
        for answer in self.ask("nvmlDeviceGetFieldValues", list(wanted)) or []:
            if answer.nvmlReturn == 0:
                # All of them are small unsigned numbers, whose low half lies at the same place in every type.
                found[int(answer.fieldId)] = int(answer.value.uiVal)
        return found

    def _nvlinks(self, count: Optional[int]) -> List[Record]:
        links: Dict[Any, int] = {}
        for link in range(min(NVLINK_LIMIT if count is None else count, NVLINK_LIMIT)):
            state = self.ask("nvmlDeviceGetNvLinkState", link)
            if state is None and (count is None or self.fault is not None):
                break
            if not state:
                continue
            kind = NVLINK_PEERS.get(self.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link))
            remote = self.ask("nvmlDeviceGetNvLinkRemotePciInfo", link)
            peer = bus_id(_string(remote.busId)) if remote else None
            if peer is None or peer.startswith("ffff") or peer == "0000:00:00.0":
                # In a virtual machine the switches are not to be seen (NCCL takes such a link as one to a switch, too).
                peer, kind = None, kind or "switch"
            links[(peer, kind)] = links.get((peer, kind), 0) + 1
        return [
            {"type": "nvlink", "peer_bus_id": peer, "peer_type": kind, "count": links[(peer, kind)], "weight": None}
            for peer, kind in sorted(links, key=lambda key: (key[0] or "~", key[1] or ""))
        ]

    def _c2c(self, count: Optional[int]) -> List[Record]:
        mode = self.ask("nvmlDeviceGetC2cModeInfoV") or self.ask("nvmlDeviceGetC2cModeInfoV1")
        if mode is None or not mode.isC2cEnabled:
            return []
        return [{"type": "c2c", "peer_bus_id": None, "peer_type": "cpu", "count": count or None, "weight": None}]

    def _fabric(self) -> Optional[Record]:
        """Ask in the newest layout first; an older library refuses a layout that it does not know."""
        import ctypes  # noqa: PLC0415  nvidia-ml-py has loaded it already

        for function, layout in (
            ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
            ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
            ("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t"),
        ):
            kind = getattr(self.nvml, layout, None)
            if kind is None:
                continue
            info = kind()
            if self.ask(function, ctypes.byref(info)) is not None:
                return _fabric_of(self.nvml, info)
            if self.code == NOT_SUPPORTED:
                return {**dict.fromkeys(FABRIC_KEYS), "state": "not_supported"}
        return None


def _cores_each(major: int, minor: int) -> int:
    """Return the CUDA cores of one multiprocessor (CUDA's helper_cuda.h, _ConvertSMVer2Cores)."""
    if major == 3:
        return 192
    return 64 if (major, minor) in CAPABILITIES_WITH_64_CORES else 128


def _fabric_of(nvml: Any, info: Any) -> Record:
    state = FABRIC_STATES.get(int(info.state))
    raw = bytes(bytearray(info.clusterUuid)).hex()
    # A cluster of one machine has no UUID, which NVML gives as zeros.
    cluster = None if not raw.strip("0") else "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:32]))
    completed = state == "completed"
    healthy = _fabric_health(getattr(info, "healthSummary", 0), getattr(info, "healthMask", 0))
    status = int(info.status)
    if completed and status:
        healthy = False
    return {
        "state": state,
        "status": (str(nvml.NVMLError(status)) if status else "Success") if completed else None,
        "cluster_uuid": cluster,
        "clique_id": int(info.cliqueId) if completed else None,
        "healthy": healthy,
    }


def _fabric_health(summary: int, mask: int) -> Optional[bool]:
    """Read NVML_GPU_FABRIC_HEALTH_SUMMARY_*, or the mask where the driver has no summary.

    The mask has two bits each (0 unknown, 1 true, 2 false) for degraded bandwidth, route recovery, route unhealthy and
    access timeout recovery, then four for an incorrect configuration (0 unknown, 1 none).
    """
    if summary:
        return summary == 1
    faults = [mask >> shift & 3 for shift in (0, 2, 4, 6)]
    configuration = mask >> 8 & 15
    if 1 in faults or configuration > 1:
        return False
    return True if 2 in faults or configuration == 1 else None


def _ids(device: Optional[int], subsystem: Optional[int]) -> Optional[Record]:
    """NVML and nvidia-smi put the device's id into the high half and the vendor's into the low half."""
    if not device or device & 0xFFFF != 0x10DE or not device >> 16:
        return None
    return {
        "vendor_id": "10de",
        "device_id": f"{device >> 16:04x}",
        "subsystem_vendor_id": f"{subsystem & 0xFFFF:04x}" if subsystem else None,
        "subsystem_device_id": f"{subsystem >> 16:04x}" if subsystem else None,
        "class": None,
        "revision": None,
    }


def _integer(value: Any) -> Optional[int]:
    return None if value is None else int(value)


def _watts(milliwatts: Optional[int]) -> Optional[float]:
    return milliwatts / 1000 if milliwatts else None
