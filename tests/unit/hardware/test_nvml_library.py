# SPDX-License-Identifier: Apache-2.0
"""The facts through the real nvidia-ml-py, which talks to a stand-in library made for each test."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvml as nvml_questions
from ansible_collections.fleet.inference.plugins.plugin_utils.nvidia_ml_py import trimmed
from nvml_stand_in import (
    DRIVER_NOT_LOADED,
    FABRIC_COMPLETED,
    GPU_IS_LOST,
    H100_BUS,
    H100_SWITCHES,
    LOG_VARIABLE,
    MACHINE_VARIABLE,
    MIB,
    NO_PERMISSION,
    RESET_REQUIRED,
    SONAME,
    UNCORRECTED,
    UNKNOWN,
    VERSION_MISMATCH,
    VOLATILE,
    Error,
    NoCompilerError,
    NvmlMachine,
    attached,
    build,
    calls,
    eight_h100,
    gb10,
    gb200,
    gh200,
    h100_mig,
    jetson_orin,
    lost_among_eight,
    pci_files,
    preload,
    t4,
    two_compute_instances,
    v100_pair,
    vgpu_guest,
    write_machine,
)

PROJECT = Path(__file__).resolve().parents[3]
HOST_MEMORY_BYTES = 64 << 30


@pytest.fixture(scope="session")
def library() -> Path:
    """The stand-in, compiled."""
    try:
        return build(PROJECT / ".cache")
    except NoCompilerError as problem:
        if os.environ.get("CI"):
            pytest.fail(str(problem))
        pytest.skip(str(problem))


class StandIn:
    """What this process and its children get as libnvidia-ml.so.1."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.description = folder / "stand-in-machine"
        self.log = folder / "stand-in-log"
        monkeypatch.setenv(MACHINE_VARIABLE, str(self.description))
        monkeypatch.setenv(LOG_VARIABLE, str(self.log))

    def show(self, machine: NvmlMachine) -> None:
        """Be this machine from the next nvmlInit on."""
        write_machine(self.description, machine)


@pytest.fixture
def nvml(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, loaded; it lists no GPU until a test shows it a machine."""
    preload(library)
    stand_in = StandIn(tmp_path, monkeypatch)
    stand_in.show(NvmlMachine())
    yield stand_in
    # A test that failed half-way must not leave the library open for the next one.
    while True:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            break


Ask = Callable[..., Any]


@pytest.fixture
def ask(nvml: StandIn) -> Ask:
    """`ask(machine)` starts the library on a machine and returns the handles of its GPUs."""

    def start(machine: NvmlMachine) -> list[Any]:
        nvml.show(machine)
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

    return start


# The stand-in itself


STRUCTURES = (
    "nvmlPciInfo_t",
    "c_nvmlMemory_t",
    "c_nvmlMemory_v2_t",
    "c_nvmlBAR1Memory_t",
    "c_nvmlDeviceAttributes",
    "c_nvmlDeviceAddressingMode_t",
    "c_nvmlProcessInfo_v2_t",
    "c_nvmlGpuFabricInfo_t",
    "c_nvmlGpuFabricInfo_v2_t",
    "c_nvmlGpuFabricInfo_v3_t",
    "c_nvmlFieldValue_t",
)


@pytest.mark.parametrize("name", STRUCTURES)
def test_layouts_are_those_of_nvidia_ml_py(library: Path, name: str) -> None:
    size_of = preload(library).stand_in_size_of
    assert size_of(name.encode()) == ctypes.sizeof(getattr(pynvml, name))


def test_versions(ask: Ask) -> None:
    ask(eight_h100())
    assert pynvml.nvmlSystemGetDriverVersion() == "570.124.06"
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.570.124.06"
    assert pynvml.nvmlSystemGetCudaDriverVersion_v2() == 12080


def test_values_come_back_as_described(ask: Ask) -> None:
    handles = ask(eight_h100())
    assert len(handles) == 8
    gpu = handles[4]
    assert pynvml.nvmlDeviceGetIndex(gpu) == 4
    assert pynvml.nvmlDeviceGetName(gpu) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetMinorNumber(gpu) == 4
    assert pynvml.nvmlDeviceGetCudaComputeCapability(gpu) == (9, 0)
    assert pynvml.nvmlDeviceGetNumGpuCores(gpu) == 16896
    assert pynvml.nvmlDeviceGetEccMode(gpu) == [1, 1]
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu) == [200000, 700000]
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]
    assert pynvml.nvmlDeviceGetRemappedRows(gpu) == (0, 0, 0, 0)
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0) == 0
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    pci = pynvml.nvmlDeviceGetPciInfo(gpu)
    assert (pci.busId, pci.busIdLegacy) == ("00000000:9A:00.0", "0000:9A:00.0")
    assert (pci.bus, pci.pciDeviceId, pci.pciSubSystemId) == (0x9A, 0x233010DE, 0x16C110DE)
    words = pynvml.nvmlDeviceGetCpuAffinity(gpu, 4)
    processors = [number for number in range(256) if words[number // 64] >> number % 64 & 1]
    assert processors == [*range(52, 104), *range(156, 208)]
    assert pynvml.nvmlDeviceGetTopologyCommonAncestor(gpu, handles[5]) == pynvml.NVML_TOPOLOGY_NODE
    assert pynvml.nvmlDeviceGetTopologyCommonAncestor(gpu, handles[0]) == pynvml.NVML_TOPOLOGY_SYSTEM
    (action,) = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    assert (action.nvmlReturn, action.value.uiVal) == (0, 0)


def test_memory_of_both_versions(ask: Ask) -> None:
    (gpu, *_) = ask(eight_h100())
    first = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    second = pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)
    assert (first.total, first.used) == (81559 * MIB, 455 * MIB)
    assert (second.total, second.reserved, second.used) == (81559 * MIB, 454 * MIB, 1 * MIB)
    assert second.free == first.free == 81104 * MIB
    assert pynvml.nvmlDeviceGetBAR1MemoryInfo(gpu).bar1Total == 131072 * MIB
    with pytest.raises(pynvml.NVMLError) as problem:
        pynvml.nvmlDeviceGetMemoryInfo(gpu, 0x03000028)
    assert problem.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_handles_by_address_and_uuid(ask: Ask) -> None:
    ask(eight_h100())
    for address in ("00000000:AB:00.0", "0000:ab:00.0"):
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(address)) == 5
    uuid = eight_h100().gpus[6].uuid
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByPciBusId("0000:01:00.0")


def test_links(ask: Ask) -> None:
    first, second = ask(v100_pair())
    assert [pynvml.nvmlDeviceGetNvLinkState(first, link) for link in range(6)] == [1, 1, 1, 1, 0, 0]
    assert pynvml.nvmlDeviceGetNvLinkRemotePciInfo(first, 0).busId == "00000000:07:00.0"
    assert pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(second, 0) == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
    assert pynvml.nvmlDeviceGetNvLinkVersion(second, 5) == 2
    assert pynvml.nvmlDeviceGetP2PStatus(first, second, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == 0
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetNvLinkState(first, 6)


@pytest.mark.parametrize("structure", ["c_nvmlGpuFabricInfo_v2_t", "c_nvmlGpuFabricInfo_v3_t"])
def test_fabric(ask: Ask, structure: str) -> None:
    (gpu, *_) = ask(gb200())
    fabric = getattr(pynvml, structure)()
    pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(fabric))
    assert (fabric.state, fabric.status, fabric.cliqueId) == (pynvml.NVML_GPU_FABRIC_STATE_COMPLETED, 0, 2)
    assert bytes(fabric.clusterUuid).hex() == "00000001000000000000000000000001"
    assert getattr(fabric, "healthSummary", 1) == pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY
    assert pynvml.nvmlDeviceGetC2cModeInfoV(gpu).isC2cEnabled == 1


def test_fabric_of_an_older_driver(ask: Ask) -> None:
    machine = gb200()
    machine.extra["fabric_version"] = 2
    (gpu, *_) = ask(machine)
    pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(pynvml.c_nvmlGpuFabricInfo_v2_t()))
    with pytest.raises(pynvml.NVMLError) as problem:
        pynvml.nvmlDeviceGetGpuFabricInfoV(gpu, ctypes.byref(pynvml.c_nvmlGpuFabricInfo_v3_t()))
    assert problem.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_mig_devices(ask: Ask) -> None:
    (gpu,) = ask(h100_mig())
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    instances = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot) for slot in range(4)]
    assert [pynvml.nvmlDeviceGetGpuInstanceId(instance) for instance in instances] == [2, 3, 9, 10]
    assert pynvml.nvmlDeviceGetName(instances[1]) == "NVIDIA H100 80GB HBM3 MIG 2g.20gb"
    assert pynvml.nvmlDeviceGetAttributes(instances[0]).multiprocessorCount == 60
    assert pynvml.nvmlDeviceGetMemoryInfo(instances[3]).total == 9984 * MIB
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instances[3])
    assert pynvml.nvmlDeviceGetUUID(parent) == h100_mig().gpus[0].uuid
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 4)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetNvLinkState(gpu, 0)


def test_processes(ask: Ask) -> None:
    (gpu,) = ask(gb10())
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    assert (process.pid, process.usedGpuMemory) == (4711, 2048 * MIB)


def test_what_is_not_described_is_not_supported(ask: Ask) -> None:
    (gpu,) = ask(gb10())
    for question in ("MemoryInfo", "EccMode", "PowerManagementLimit", "MigMode", "RemappedRows", "NumaNodeId"):
        with pytest.raises(pynvml.NVMLError_NotSupported):
            getattr(pynvml, f"nvmlDeviceGet{question}")(gpu)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (DRIVER_NOT_LOADED, pynvml.NVMLError_DriverNotLoaded),
        (VERSION_MISMATCH, pynvml.NVMLError_LibRmVersionMismatch),
        (NO_PERMISSION, pynvml.NVMLError_NoPermission),
    ],
)
def test_it_does_not_start(ask: Ask, number: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        ask(NvmlMachine(init=Error(number)))
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (GPU_IS_LOST, pynvml.NVMLError_GpuIsLost),
        (RESET_REQUIRED, pynvml.NVMLError_ResetRequired),
        (UNKNOWN, pynvml.NVMLError_Unknown),
        (NO_PERMISSION, pynvml.NVMLError_NoPermission),
    ],
)
def test_faults_of_one_gpu(ask: Ask, nvml: StandIn, number: int, error: type[Exception]) -> None:
    machine = eight_h100()
    machine.gpus[2].extra["fault"] = number
    handles = ask(machine)
    with pytest.raises(error):
        pynvml.nvmlDeviceGetName(handles[2])
    assert pynvml.nvmlDeviceGetName(handles[3]) == "NVIDIA H100 80GB HBM3"
    pynvml.nvmlShutdown()
    machine.gpus[2].extra = {"open": Error(number)}
    nvml.show(machine)
    pynvml.nvmlInit()
    with pytest.raises(error):
        pynvml.nvmlDeviceGetHandleByIndex(2)


def test_one_function_fails_or_is_slow(ask: Ask) -> None:
    machine = t4().misbehave("nvmlDeviceGetName", f"return {UNKNOWN}")
    (gpu,) = ask(machine.misbehave("nvmlDeviceGetUUID", "delay 100", 0))
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetName(gpu)
    started = time.monotonic()
    assert pynvml.nvmlDeviceGetUUID(gpu) == machine.gpus[0].uuid
    assert time.monotonic() - started >= 0.1


def test_the_log_tells_which_gpus_were_attached(nvml: StandIn) -> None:
    nvml.show(eight_h100())
    pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_ATTACH)
    assert attached(nvml.log) == []
    pynvml.nvmlDeviceGetHandleByIndex(2)
    pynvml.nvmlDeviceGetHandleByPciBusId("0000:9a:00.0")
    assert attached(nvml.log) == [2, 4]
    assert calls(nvml.log)[-1] == "nvmlDeviceGetHandleByPciBusId_v2 4"
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert attached(nvml.log) == list(range(8))


def in_a_process_of_its_own(library: Path, nvml: StandIn, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in which the stand-in is the installed library."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_found_as_an_installed_library_is(library: Path, nvml: StandIn) -> None:
    nvml.show(t4())
    code = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlSystemGetDriverVersion())"
    assert in_a_process_of_its_own(library, nvml, code).stdout == "595.91.07\n"


def test_crash(library: Path, nvml: StandIn) -> None:
    nvml.show(t4().misbehave("nvmlSystemGetDriverVersion", "crash"))
    code = "import pynvml; pynvml.nvmlInit(); pynvml.nvmlSystemGetDriverVersion()"
    assert in_a_process_of_its_own(library, nvml, code).returncode == -11


def test_no_machine_is_no_library(nvml: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MACHINE_VARIABLE)
    with pytest.raises(pynvml.NVMLError_LibraryNotFound):
        pynvml.nvmlInit()


def test_soname(library: Path) -> None:
    assert library.name == SONAME
    assert f"\0{SONAME}\0".encode() in library.read_bytes()


# The facts


Facts = dict[str, Any]


class Node:
    """A machine of files whose NVML is the stand-in, and whose `nvidia-smi` is one too."""

    def __init__(self, machine: Any, nvml: StandIn, programs: Path) -> None:
        self.machine = machine
        self.nvml = nvml
        self.programs = programs

    def nvidia_smi(self, script: str) -> None:
        """Install an `nvidia-smi` of our own."""
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def put(self, described: NvmlMachine, suspended: tuple[int, ...] = (), library: str | None = None) -> None:
        """Put the GPUs on the bus, load the driver and let NVML show them; `library` is another version of it."""
        files, links = pci_files(described, suspended)
        for path, text in files.items():
            self.machine.write(path, text)
        for path, target in links.items():
            self.machine.link(path, target)
        self.machine.nvidia_driver(str(described.driver_version), library)
        self.nvml.show(described)

    def facts(self, **options: Any) -> Facts:
        """The facts of it."""
        return self.machine.facts(live=True, **options)

    def of(self, described: NvmlMachine, **options: Any) -> Facts:
        """Put the machine there and return its facts."""
        self.put(described)
        return self.facts(**options)


@pytest.fixture
def node(machine: Any, nvml: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A machine whose `nvidia-smi` knows nothing unless a test gives it another one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    found = Node(machine, nvml, programs)
    found.nvidia_smi("exit 9")
    return found


def column(facts: Facts, key: str) -> list[Any]:
    """One field of every GPU."""
    return [device[key] for device in facts["devices"]]


def messages(facts: Facts) -> str:
    """All errors as one text."""
    return "\n".join(error["message"] for error in facts["errors"])


def test_eight_h100(node: Node) -> None:
    node.nvidia_smi(f"echo asked >> {node.programs}/asked; exit 9")
    facts = node.of(eight_h100())
    assert (facts["physical_count"], facts["usable_count"], facts["nvswitch_count"]) == (8, 8, 4)
    assert facts["vendors"] == ["nvidia"] and facts["tier"] == "cuda"
    assert facts["errors"] == [] and facts["probes"]["nvml"]["status"] == "ok"
    assert facts["probes"]["nvidia_smi"]["status"] == "absent" and not (node.programs / "asked").exists()
    driver = facts["driver"]
    assert (driver["version"], driver["library_version"], driver["cuda_version"]) == (
        "570.124.06",
        "570.124.06",
        "12.8",
    )
    assert driver["kernel_module_version"] == "570.124.06" and driver["module_flavour"] == "open"
    assert driver["mismatch"] is False and driver["reboot_required"] is False
    assert column(facts, "pci_bus_id") == [f"0000:{bus}:00.0" for bus in H100_BUS]
    assert column(facts, "index") == list(range(8))
    assert column(facts, "uuid") == [gpu.uuid for gpu in eight_h100().gpus]
    assert column(facts, "numa_node") == [0, 0, 0, 0, 1, 1, 1, 1]
    assert column(facts, "device_node") == [f"/dev/nvidia{minor}" for minor in range(8)]
    device = facts["devices"][0]
    expected = {
        "name": "NVIDIA H100 80GB HBM3",
        "vendor": "nvidia",
        "architecture": "9.0",
        "generation": "hopper",
        "compute_units": 132,
        "memory_total_bytes": 81559 * MIB,
        "memory_used_bytes": 1 * MIB,
        "memory_reserved_bytes": 454 * MIB,
        "memory_bar_bytes": 131072 * MIB,
        "unified_memory": False,
        "integrated": False,
        "cpu_affinity": "0-51,104-155",
        "driver_bound": "nvidia",
        "power_state": "active",
        "health": "ok",
        "virtualization": "none",
        "persistence_mode": True,
        "compute_mode": "default",
        "partition": None,
        "usable": True,
        "unusable_reason": None,
    }
    assert {key: device[key] for key in expected} == expected
    assert device["pci"] == {
        "vendor_id": "10de",
        "device_id": "2330",
        "subsystem_vendor_id": "10de",
        "subsystem_device_id": "16c1",
        "class": "030200",
        "revision": "a1",
    }
    assert device["ecc"] == {
        "mode": True,
        "pending_mode": True,
        "uncorrected": 0,
        "remap_pending": False,
        "remap_failure": False,
    }
    assert device["power"] == {
        "limit_watts": 700,
        "default_limit_watts": 700,
        "min_limit_watts": 200,
        "max_limit_watts": 700,
    }
    assert device["pcie"] == {"generation_max": 5, "generation_current": 5, "width_max": 16, "width_current": 16}
    assert device["mig"] == {"mode": False, "pending_mode": False, "instances": []}
    # The fabric of one machine has no UUID, and this driver does not say how it is.
    assert (device["fabric"]["state"], device["fabric"]["cluster_uuid"]) == ("completed", None)
    assert device["fabric"]["healthy"] is None


def test_eight_h100_are_one_nvlink_domain(node: Node) -> None:
    facts = node.of(eight_h100())
    for device in facts["devices"]:
        assert [(link["peer_bus_id"], link["count"]) for link in device["links"]] == [
            (H100_SWITCHES[0], 5),
            (H100_SWITCHES[1], 4),
            (H100_SWITCHES[2], 4),
            (H100_SWITCHES[3], 5),
        ]
        assert {(link["type"], link["peer_type"]) for link in device["links"]} == {("nvlink", "switch")}
    matrix = facts["topology"]["matrix"]
    assert matrix == [["SELF" if row == other else "NVLINK" for other in range(8)] for row in range(8)]
    assert facts["topology"]["link_domains"] == [{"type": "nvlink", "numa_node": None, "devices": list(range(8))}]


def test_mig(node: Node) -> None:
    facts = node.of(h100_mig())
    (device,) = facts["devices"]
    assert (facts["physical_count"], facts["usable_count"]) == (1, 4)
    assert device["mig"]["mode"] is True and device["mig"]["pending_mode"] is True
    assert device["usable"] is False and "MIG" in device["unusable_reason"]
    assert device["health"] == "ok" and device["virtualization"] == "passthrough"
    assert device["memory_total_bytes"] == 81559 * MIB
    instances = device["mig"]["instances"]
    assert [instance["profile"] for instance in instances] == ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]
    assert [instance["index"] for instance in instances] == [0, 1, 2, 3]
    assert [instance["uuid"] for instance in instances] == [mig.uuid for mig in h100_mig().gpus[0].migs]
    assert [instance["gpu_instance_id"] for instance in instances] == [2, 3, 9, 10]
    assert [instance["compute_instance_id"] for instance in instances] == [0, 0, 0, 0]
    assert [instance["memory_total_bytes"] // MIB for instance in instances] == [40448, 20096, 9984, 9984]
    assert [instance["memory_shared"] for instance in instances] == [False] * 4
    assert [instance["multiprocessors"] for instance in instances] == [60, 32, 16, 16]
    assert device["links"] == [] and facts["topology"]["link_domains"] == []


def test_two_compute_instances_share_the_memory_of_one_gpu_instance(node: Node) -> None:
    facts = node.of(two_compute_instances())
    (device,) = facts["devices"]
    instances = device["mig"]["instances"]
    assert [instance["memory_shared"] for instance in instances] == [True, True, False]
    assert [instance["compute_instance_id"] for instance in instances] == [0, 1, 0]
    assert [instance["profile"] for instance in instances] == ["1c.3g.40gb", "2c.3g.40gb", "1g.10gb"]
    assert facts["usable_count"] == 3


def test_mig_without_instances(node: Node) -> None:
    described = h100_mig()
    described.gpus[0].migs = []
    facts = node.of(described)
    (device,) = facts["devices"]
    assert (facts["physical_count"], facts["usable_count"]) == (1, 0)
    assert device["mig"] == {"mode": True, "pending_mode": True, "instances": []}
    assert device["usable"] is False and "no instances" in device["unusable_reason"]


def test_one_mig_slot_fails_and_another_is_empty(node: Node) -> None:
    described = h100_mig()
    first, second, third, fourth = described.gpus[0].migs
    second.extra["in.nvmlDeviceGetUUID"] = f"return {UNKNOWN}"
    described.gpus[0].migs, described.gpus[0].slots = [], {0: first, 2: second, 3: third, 6: fourth}
    (device,) = node.of(described)["devices"]
    instances = device["mig"]["instances"]
    assert [instance["index"] for instance in instances] == [0, 2, 3, 6]
    assert [instance["uuid"] for instance in instances] == [first.uuid, None, third.uuid, fourth.uuid]


@pytest.mark.parametrize("opens", [False, True])
def test_one_lost_gpu_hides_no_other(node: Node, opens: bool) -> None:
    facts = node.of(lost_among_eight(3, opens=opens))
    assert (facts["physical_count"], facts["usable_count"]) == (8, 7)
    lost = facts["devices"][3]
    assert lost["pci_bus_id"] == "0000:5d:00.0"
    assert (lost["health"], lost["usable"], lost["memory_total_bytes"]) == ("lost", False, None)
    assert "lost" in lost["unusable_reason"]
    assert lost["unified_memory"] is False and lost["pci"]["device_id"] == "2330"
    others = [device for device in facts["devices"] if device is not lost]
    assert all(device["health"] == "ok" and device["memory_total_bytes"] == 81559 * MIB for device in others)
    assert [device["index"] for device in others] == [0, 1, 2, 4, 5, 6, 7]
    assert facts["probes"]["nvml"]["status"] == "ok"
    assert facts["topology"]["link_domains"][0]["devices"] == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("number", "health"), [(RESET_REQUIRED, "reset_required"), (UNKNOWN, "error"), (GPU_IS_LOST, "lost")]
)
@pytest.mark.parametrize("opens", [False, True])
def test_health(node: Node, number: int, health: str, opens: bool) -> None:
    described = eight_h100()
    described.gpus[7].extra.update({"fault": number} if opens else {"open": Error(number)})
    facts = node.of(described)
    assert column(facts, "health") == ["ok"] * 7 + [health]
    assert column(facts, "usable") == [True] * 7 + [False]
    assert facts["devices"][7]["unusable_reason"]


def test_no_permission_for_one_gpu(node: Node) -> None:
    described = eight_h100()
    described.gpus[0].extra["open"] = Error(NO_PERMISSION)
    facts = node.of(described)
    assert facts["usable_count"] == 7
    device = facts["devices"][0]
    assert device["usable"] is False and "ermission" in device["unusable_reason"]
    assert device["health"] != "lost"


def test_index_and_device_node_are_what_nvml_says(node: Node) -> None:
    described = v100_pair()
    described.gpus.reverse()
    described.gpus[0].minor, described.gpus[1].minor = 4, 2
    facts = node.of(described)
    assert column(facts, "pci_bus_id") == ["0000:06:00.0", "0000:07:00.0"]
    assert column(facts, "index") == [1, 0]
    assert column(facts, "device_node") == ["/dev/nvidia2", "/dev/nvidia4"]


@pytest.mark.parametrize(("number", "mode"), [(0, "none"), (1, "passthrough"), (2, "vgpu_guest"), (3, "vgpu_host")])
def test_virtualization(node: Node, number: int, mode: str) -> None:
    described = t4()
    described.gpus[0].virtualization = number
    assert column(node.of(described), "virtualization") == [mode]


@pytest.mark.parametrize(
    ("number", "mode"), [(0, "default"), (1, "exclusive_thread"), (2, "prohibited"), (3, "exclusive_process")]
)
def test_compute_mode(node: Node, number: int, mode: str) -> None:
    described = t4()
    described.gpus[0].compute_mode = number
    assert column(node.of(described), "compute_mode") == [mode]


def test_rows_that_wait_for_a_reset_or_cannot_be_remapped(node: Node) -> None:
    described = eight_h100()
    described.gpus[1].remapped_rows = (0, 1, 1, 0)
    described.gpus[2].remapped_rows = (0, 9, 0, 1)
    described.gpus[2].extra[f"ecc_errors.{UNCORRECTED}.{VOLATILE}"] = 7
    ecc = column(node.of(described), "ecc")
    assert [(state["remap_pending"], state["remap_failure"]) for state in ecc[:3]] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert [state["uncorrected"] for state in ecc[:3]] == [0, 0, 7]


@pytest.mark.parametrize(("described", "pending"), [(v100_pair(), True), (t4(), False)])
def test_pages_of_older_gpus_wait_for_a_reset(node: Node, described: NvmlMachine, pending: bool) -> None:
    assert column(node.of(described), "ecc")[0]["remap_pending"] is pending


@pytest.mark.parametrize(
    ("fabric", "state", "healthy"),
    [
        ((2, 0, 0, 0, 0), "in_progress", None),
        ((1, 0, 0, 0, 0), "not_started", None),
        ((FABRIC_COMPLETED, 0, 3, 0, 2), "completed", False),
        ((FABRIC_COMPLETED, UNKNOWN, 3, 0, 0), "completed", False),
        # Degraded bandwidth in the mask of a driver that has no summary.
        ((FABRIC_COMPLETED, 0, 3, 1, 0), "completed", False),
    ],
)
def test_fabric_state(node: Node, fabric: tuple[int, ...], state: str, healthy: bool | None) -> None:
    described = gb200()
    for gpu in described.gpus:
        gpu.fabric = fabric
    (found, *_) = column(node.of(described), "fabric")
    assert (found["state"], found["healthy"]) == (state, healthy)


def test_one_value_that_fails_costs_that_value_only(node: Node) -> None:
    described = eight_h100()
    described.misbehave("nvmlDeviceGetName", f"return {UNKNOWN}", 1)
    described.misbehave("nvmlDeviceGetBAR1MemoryInfo", f"return {UNKNOWN}", 2)
    facts = node.of(described)
    assert facts["usable_count"] == 8
    assert column(facts, "memory_total_bytes") == [81559 * MIB] * 8
    assert column(facts, "memory_bar_bytes") == [131072 * MIB] * 2 + [None] + [131072 * MIB] * 5


def test_functions_that_an_older_library_lacks(node: Node) -> None:
    described = eight_h100()
    newer = ("MemoryInfo_v2", "AddressingMode", "GpuFabricInfoV", "GpuFabricInfo", "C2cModeInfoV", "FieldValues")
    for function in (*newer, "RemappedRows", "NvLinkRemoteDeviceType", "Attributes_v2", "NumGpuCores"):
        described.misbehave(f"nvmlDeviceGet{function}", "return 13")
    described.misbehave("nvmlDeviceGetComputeRunningProcesses_v3", "return 13")
    facts = node.of(described)
    assert facts["usable_count"] == 8 and column(facts, "memory_total_bytes") == [81559 * MIB] * 8
    device = facts["devices"][0]
    assert (device["memory_used_bytes"], device["memory_reserved_bytes"]) == (455 * MIB, None)
    assert device["ecc"]["remap_pending"] is None and device["fabric"] is None


MACHINES = {
    machine.__name__: machine
    for machine in (eight_h100, h100_mig, lost_among_eight, gb10, gb200, gh200, v100_pair, t4, vgpu_guest)
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_travels_of_nvidia_ml_py_tells_the_same(node: Node, name: str) -> None:
    user = Path(str(nvml_questions.__file__)).read_text()
    source = trimmed(Path(str(pynvml.__file__)).read_text(), user)
    assert len(source) < len(Path(str(pynvml.__file__)).read_text()) / 10
    whole = node.of(MACHINES[name]())
    carried = node.facts(pynvml=source)
    assert carried["probes"]["nvml"]["status"] == "ok"
    assert [carried[key] for key in ("devices", "driver", "errors")] == [
        whole[key] for key in ("devices", "driver", "errors")
    ]


def test_unified_memory(node: Node) -> None:
    facts = node.of(gb10())
    (device,) = facts["devices"]
    assert device["pci_bus_id"] == "000f:01:00.0" and device["architecture"] == "12.1"
    assert (device["unified_memory"], device["usable"], facts["usable_count"]) == (True, True, 1)
    assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (HOST_MEMORY_BYTES, 2048 * MIB)
    # It says that it is connected by one lane of the first generation.
    assert set(device["pcie"].values()) == {None}
    assert device["ecc"]["mode"] is None and device["mig"]["mode"] is None
    assert set(device["power"].values()) == {None}


def test_memory_that_fails_is_not_unified(node: Node) -> None:
    described = gb10()
    described.gpus[0].memory = Error(UNKNOWN)
    (device,) = node.of(described)["devices"]
    assert (device["unified_memory"], device["memory_total_bytes"]) == (False, None)


def test_address_translation_with_memory_of_its_own(node: Node) -> None:
    facts = node.of(gb200())
    assert column(facts, "unified_memory") == [False] * 4 and facts["usable_count"] == 4
    assert column(facts, "memory_total_bytes") == [189471 * MIB] * 4
    device = facts["devices"][0]
    assert device["generation"] == "blackwell"
    fabric = {key: device["fabric"][key] for key in ("state", "cluster_uuid", "clique_id", "healthy")}
    assert fabric == {
        "state": "completed",
        "cluster_uuid": "00000001-0000-0000-0000-000000000001",
        "clique_id": 2,
        "healthy": True,
    }
    (chip,) = [link for link in device["links"] if link["type"] == "c2c"]
    assert (chip["peer_bus_id"], chip["peer_type"]) == (None, "cpu")
    assert {row[other] for row in facts["topology"]["matrix"] for other in range(4)} == {"SELF", "NVLINK"}


def test_grace_hopper(node: Node) -> None:
    (device,) = node.of(gh200())["devices"]
    assert (device["unified_memory"], device["memory_total_bytes"]) == (False, 97871 * MIB)
    assert [link["type"] for link in device["links"]] == ["c2c"]


def test_links_between_two_gpus(node: Node) -> None:
    facts = node.of(v100_pair())
    first, second = facts["devices"]
    (link,) = first["links"]
    assert (link["type"], link["peer_bus_id"], link["peer_type"], link["count"]) == (
        "nvlink",
        "0000:07:00.0",
        "gpu",
        4,
    )
    assert second["links"][0]["peer_bus_id"] == "0000:06:00.0"
    assert facts["topology"]["matrix"] == [["SELF", "NVLINK"], ["NVLINK", "SELF"]]
    assert (first["generation"], first["compute_units"]) == ("volta", 80)
    assert first["fabric"]["state"] == "not_supported"
    assert (first["compute_mode"], first["persistence_mode"]) == ("exclusive_process", False)
    assert first["power"] == {
        "limit_watts": 250,
        "default_limit_watts": 300,
        "min_limit_watts": 150,
        "max_limit_watts": 300,
    }
    assert first["pcie"]["generation_max"] == 3 and first["pcie"]["generation_current"] == 1
    ecc = [device["ecc"] for device in facts["devices"]]
    assert [(state["mode"], state["pending_mode"], state["uncorrected"]) for state in ecc] == [
        (True, False, 0),
        (True, False, 2),
    ]
    # This generation retires pages; it has no rows to remap.
    assert [state["remap_failure"] for state in ecc] == [None, None]


def test_small_card_of_a_cloud(node: Node) -> None:
    (device,) = node.of(t4())["devices"]
    assert (device["virtualization"], device["generation"], device["compute_units"]) == ("passthrough", "turing", 40)
    assert device["memory_bar_bytes"] == 256 * MIB and device["memory_total_bytes"] == 15360 * MIB
    assert (device["pcie"]["width_max"], device["pcie"]["width_current"]) == (16, 8)
    assert device["mig"] == {"mode": None, "pending_mode": None, "instances": []}
    assert device["links"] == [] and device["fabric"]["state"] == "not_supported" and device["usable"] is True


def test_virtual_gpu_of_a_guest(node: Node) -> None:
    (device,) = node.of(vgpu_guest())["devices"]
    assert (device["virtualization"], device["name"], device["usable"]) == ("vgpu_guest", "GRID P4-1Q", True)
    assert device["memory_total_bytes"] == 1024 * MIB and device["power"]["limit_watts"] is None


def test_gpu_that_is_not_on_pci(node: Node) -> None:
    node.machine.write("sys/module/nvgpu/initstate", "live\n")
    node.nvml.show(jetson_orin())
    facts = node.facts()
    (device,) = facts["devices"]
    assert (device["name"], device["pci_bus_id"], device["pci"]) == ("Orin (nvgpu)", None, None)
    assert (device["unified_memory"], device["memory_total_bytes"]) == (True, HOST_MEMORY_BYTES)
    assert (device["architecture"], device["usable"], facts["usable_count"]) == ("8.7", True, 1)


def test_gpu_that_nvml_does_not_list(node: Node) -> None:
    described = eight_h100()
    node.put(described)
    described.gpus = described.gpus[:7]
    node.nvml.show(described)
    facts = node.facts()
    assert (facts["physical_count"], facts["usable_count"]) == (8, 7)
    assert facts["devices"][7]["usable"] is False and facts["devices"][7]["unusable_reason"]


# Sleep


def test_a_sleeping_gpu_is_not_opened(node: Node) -> None:
    node.put(eight_h100(), suspended=(2, 5))
    facts = node.facts()
    assert attached(node.nvml.log) == [0, 1, 3, 4, 6, 7]
    assert (facts["physical_count"], facts["usable_count"]) == (8, 6)
    for position in (2, 5):
        device = facts["devices"][position]
        assert (device["power_state"], device["usable"], device["memory_total_bytes"]) == ("suspended", False, None)
        assert device["unusable_reason"] == "it is asleep; gather the facts with wake: true to wake it"
    assert column(facts, "index") == list(range(8))
    assert facts["devices"][3]["memory_total_bytes"] == 81559 * MIB


def test_nothing_is_opened_where_all_sleep(node: Node) -> None:
    node.nvidia_smi(f"echo asked >> {node.programs}/asked; exit 9")
    node.put(eight_h100(), suspended=tuple(range(8)))
    facts = node.facts()
    assert attached(node.nvml.log) == [] and not (node.programs / "asked").exists()
    assert column(facts, "power_state") == ["suspended"] * 8
    assert (facts["physical_count"], facts["usable_count"]) == (8, 0)


def test_sleeping_gpus_are_woken_on_demand(node: Node) -> None:
    node.put(eight_h100(), suspended=(2, 5))
    facts = node.facts(wake=True)
    assert attached(node.nvml.log) == list(range(8))
    assert facts["usable_count"] == 8 and column(facts, "memory_total_bytes") == [81559 * MIB] * 8


# NVML as a whole


def test_module_and_library_differ(node: Node) -> None:
    sentence = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 575.57"
    node.nvidia_smi(f"printf '%s\\n' '{sentence}'; exit 18")
    described = eight_h100()
    described.init = Error(VERSION_MISMATCH)
    node.put(described, library="575.57.08")
    facts = node.facts()
    driver = facts["driver"]
    assert driver["mismatch"] is True and driver["reboot_required"] is True and driver["reboot_reason"]
    assert (driver["kernel_module_version"], driver["library_version"]) == ("570.124.06", "575.57.08")
    assert facts["probes"]["nvml"]["status"] == "error"
    assert (facts["physical_count"], facts["usable_count"]) == (8, 0)
    assert all(device["unusable_reason"] for device in facts["devices"])


@pytest.mark.parametrize("number", [DRIVER_NOT_LOADED, NO_PERMISSION, UNKNOWN])
def test_nvml_does_not_start(node: Node, number: int) -> None:
    described = eight_h100()
    described.init = Error(number)
    facts = node.of(described)
    assert facts["probes"]["nvml"]["status"] == "error" and facts["probes"]["nvml"]["message"]
    assert (facts["physical_count"], facts["usable_count"]) == (8, 0)
    assert all(device["unusable_reason"] for device in facts["devices"])
    assert facts["driver"]["mismatch"] is False


def test_nvidia_smi_is_asked_where_nvml_crashes(node: Node) -> None:
    node.nvidia_smi(f"echo asked >> {node.programs}/asked; exit 9")
    facts = node.of(eight_h100().misbehave("nvmlDeviceGetName", "crash", 4))
    assert facts["probes"]["nvml"]["status"] == "error" and "signal 11" in facts["probes"]["nvml"]["message"]
    assert (node.programs / "asked").exists()
    assert (facts["physical_count"], facts["usable_count"]) == (8, 0)
    assert column(facts, "numa_node") == [0, 0, 0, 0, 1, 1, 1, 1]


def test_slow_calls_are_waited_for(node: Node) -> None:
    described = eight_h100().misbehave("nvmlInitWithFlags", "delay 600")
    facts = node.of(described.misbehave("nvmlDeviceGetUUID", "delay 50"))
    assert facts["usable_count"] == 8 and facts["probes"]["nvml"]["status"] == "ok"
    assert facts["probes"]["nvml"]["ms"] >= 1000


@pytest.mark.parametrize(("function", "gpu"), [("nvmlDeviceGetHandleByIndex_v2", 6), ("nvmlDeviceGetMemoryInfo_v2", 0)])
def test_a_gpu_that_hangs_costs_itself(node: Node, function: str, gpu: int) -> None:
    node.put(eight_h100().misbehave(function, "hang", gpu))
    started = time.monotonic()
    facts = node.facts(timeout=4)
    assert time.monotonic() - started < 4
    assert facts["probes"]["nvml"]["status"] == "ok"
    assert [position for position, device in enumerate(facts["devices"]) if not device["usable"]] == [gpu]
    assert facts["devices"][gpu]["health"] == "error"
    assert "answer" in messages(facts)


def test_everything_hangs(node: Node) -> None:
    node.nvidia_smi(f"echo $$ >> {node.programs}/pids; exec sleep 120")
    node.put(eight_h100().misbehave("nvmlInitWithFlags", "hang"))
    started = time.monotonic()
    facts = node.facts(timeout=3)
    assert time.monotonic() - started < 3
    assert facts["probes"]["nvml"]["status"] == "timeout"
    assert (facts["physical_count"], facts["usable_count"]) == (8, 0)
    assert column(facts, "pci_bus_id") == [f"0000:{bus}:00.0" for bus in H100_BUS]
    assert column(facts, "generation") == ["hopper"] * 8
    assert "did not answer" in messages(facts)
    assert all("did not answer" in device["unusable_reason"] for device in facts["devices"])
    pids = node.programs / "pids"
    for pid in pids.read_text().split() if pids.exists() else []:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
