# SPDX-License-Identifier: Apache-2.0
"""A stand-in for NVIDIA's libnvidia-ml.so.1 and machines for it, so that the real nvidia-ml-py runs without a GPU.

    library = build(folder)                       # compile it once
    write_machine(path, eight_h100())             # say what it shows
    STAND_IN_NVML_MACHINE=path LD_LIBRARY_PATH=library.parent python3 ...

or, in a process that runs already, `preload(library)`: glibc answers later requests for libnvidia-ml.so.1 with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Union

SOURCE = Path(__file__).with_name("stand_in_nvml.c")
SONAME = "libnvidia-ml.so.1"
MACHINE_VARIABLE = "STAND_IN_NVML_MACHINE"
LOG_VARIABLE = "STAND_IN_NVML_LOG"
MIB = 1 << 20

# NVML's errors by number.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, UNKNOWN = (
    3,
    4,
    9,
    15,
    16,
    18,
    999,
)
# Common ancestors, kinds of peers, addressing modes and virtualization modes by number.
SAME_SWITCH, SEVERAL_SWITCHES, HOST_BRIDGE, SAME_NODE, SYSTEM = 10, 20, 30, 40, 50
PEER_GPU, PEER_SWITCH = 0, 2
ADDRESSING_HMM, ADDRESSING_ATS = 1, 2
PASSTHROUGH, VGPU_GUEST, VGPU_HOST = 1, 2, 3
NVLINK_P2P, P2P_NVLINK, P2P_OK = 0, 2, 0
UNCORRECTED, VOLATILE = 1, 0
FABRIC_COMPLETED, FABRIC_HEALTHY = 3, 1
FIELD_RECOVERY_ACTION, FIELD_NVLINK_COUNT, FIELD_C2C_COUNT = 230, 91, 170


@dataclass(frozen=True)
class Error:
    """The error that NVML gives in the place of a value."""

    number: int

    def __str__(self) -> str:
        return f"!{self.number}"


Value = Union[int, str, tuple, Error, None]


class NoCompilerError(Exception):
    """There is no C compiler on this machine."""


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return " ".join(str(part) for part in value)
    return str(value)


@dataclass
class Described:
    """Values that the stand-in answers with; None and what is missing is NOT_SUPPORTED."""

    extra: dict[str, Value] = field(default_factory=dict, kw_only=True)

    def lines(self, prefix: str) -> list[str]:
        """The lines of the description."""
        known = {own.name: getattr(self, own.name) for own in fields(self) if own.name not in self.nested()}
        found = {key: value for key, value in {**known, **self.extra}.items() if value is not None}
        return [f"{prefix}{key} {_text(value)}" for key, value in found.items()]

    def nested(self) -> tuple[str, ...]:
        """Fields that are no values."""
        return ("extra",)


@dataclass
class Mig(Described):
    """A MIG device: a compute instance of a GPU instance. Sizes are bytes."""

    uuid: str
    name: str
    gpu_instance_id: int
    compute_instance_id: int
    memory: Value  # total, reserved, used: of the GPU instance
    attributes: Value = None  # SMs, copy engines, decoders, encoders, JPEG, OFA, GPU and compute slices, MiB
    bar1: Value = None


@dataclass
class Link:
    """One NVLink."""

    remote_bus_id: str | None
    remote_type: Value = PEER_GPU
    state: Value = 1
    version: Value = 4


@dataclass
class Gpu(Described):
    """A GPU. Sizes are bytes, power milliwatts."""

    bus_id: str | None
    uuid: str
    name: str
    pci_ids: Value = None  # device and vendor, subsystem device and vendor: 0x233010DE
    minor: Value = 0
    capability: Value = None
    architecture: Value = None
    cores: Value = None
    memory: Value = None  # total, reserved, used
    bar1: Value = None  # total, used
    addressing_mode: Value = None
    persistence: Value = None
    compute_mode: Value = None
    ecc_mode: Value = None  # current, pending
    remapped_rows: Value = None  # correctable, uncorrectable, pending, failure
    retired_pages_pending: Value = None
    power_limit: Value = None
    power_default_limit: Value = None
    power_limits: Value = None
    power_usage: Value = None
    pcie_generation_max: Value = None
    pcie_generation_gpu_max: Value = None
    pcie_generation: Value = None
    pcie_width_max: Value = None
    pcie_width: Value = None
    virtualization: Value = None
    numa_node: Value = None
    cpu_affinity: Value = None
    mig_mode: Value = None
    mig_max: Value = None
    fabric: Value = None  # state, status, clique, health mask, health summary
    fabric_cluster: Value = None
    c2c_mode: Value = None
    processes: Value = None  # pid, bytes, GPU instance, compute instance, for each
    performance_state: Value = None
    migs: list[Mig] = field(default_factory=list)
    links: list[Link] | None = None
    node: int = 0  # NUMA node on the PCI bus
    slots: dict[int, Mig] = field(default_factory=dict)  # MIG devices whose numbers have gaps

    def nested(self) -> tuple[str, ...]:
        """Fields that are no values."""
        return ("extra", "migs", "links", "node", "slots")

    def lines(self, prefix: str) -> list[str]:
        """The lines of the description."""
        found = super().lines(prefix)
        for slot, mig in {**dict(enumerate(self.migs)), **self.slots}.items():
            found += mig.lines(f"{prefix}mig.{slot}.")
        if self.links is not None:
            found.append(f"{prefix}links {len(self.links)}")
        for number, link in enumerate(self.links or []):
            known = [(own.name, getattr(link, own.name)) for own in fields(link)]
            found += [f"{prefix}link.{number}.{key} {_text(value)}" for key, value in known if value is not None]
            found.append(f"{prefix}link.{number}.capability.{NVLINK_P2P} 1")
        return found


@dataclass
class NvmlMachine(Described):
    """What the library shows: versions, GPUs, and everything that goes wrong."""

    driver_version: Value = "570.124.06"
    nvml_version: Value = "12.570.124.06"
    cuda_version: Value = 12080
    init: Value = None
    gpus: list[Gpu] = field(default_factory=list)
    switches: tuple[str, ...] = ()  # NVSwitches on the PCI bus

    def nested(self) -> tuple[str, ...]:
        """Fields that are no values."""
        return ("extra", "gpus", "switches")

    def text(self) -> str:
        """The whole description."""
        found = [*self.lines(""), f"count {len(self.gpus)}"]
        for index, gpu in enumerate(self.gpus):
            found += gpu.lines(f"gpu.{index}.")
        return "\n".join(found) + "\n"

    def misbehave(self, function: str, how: str, gpu: int | None = None) -> NvmlMachine:
        """Let `function` `hang`, `crash`, `delay MILLISECONDS` or `return ERROR`; of one GPU, or of all."""
        described = self if gpu is None else self.gpus[gpu]
        described.extra[f"in.{function}"] = how
        return self


def build(folder: Path) -> Path:
    """Compile the library below `folder`, once for each content of its source, and return its path.

    Raises NoCompilerError where there is no `cc`.
    """
    command = ["cc", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}"]
    mark = hashlib.sha256(" ".join([*command, *os.uname()]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / f"nvml-stand-in-{mark}" / SONAME
    if not library.exists():
        if shutil.which("cc") is None:
            raise NoCompilerError("no C compiler: the stand-in NVML cannot be built")
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_name(f"{SONAME}.{os.getpid()}")
        subprocess.run([*command, "-o", str(fresh), str(SOURCE)], check=True, timeout=120)
        fresh.rename(library)
    return library


def preload(library: Path) -> ctypes.CDLL:
    """Load the library into this process; whoever asks for libnvidia-ml.so.1 after that gets it.

    Without a machine in the environment it says at nvmlInit that there is no NVML.
    """
    return ctypes.CDLL(str(library))


def write_machine(path: Path, machine: NvmlMachine) -> Path:
    """Write the description of `machine`."""
    path.write_text(machine.text())
    return path


def attached(log: Path) -> list[int]:
    """The GPUs that were attached, by number."""
    lines = log.read_text().splitlines() if log.exists() else []
    return sorted({int(line.split()[-1]) for line in lines if line.startswith("attach ")})


def calls(log: Path) -> list[str]:
    """The functions that were called, with the GPU's number where there is one."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line[len("call ") :] for line in lines if line.startswith("call ")]


# Machines. Their figures are those of recorded ones.


def _h100(bus_id: str = "0000:18:00.0", index: int = 0, **changes: object) -> Gpu:
    values: dict[str, object] = {
        "bus_id": bus_id,
        "uuid": f"GPU-00000000-1111-2222-3333-{index:012d}",
        "name": "NVIDIA H100 80GB HBM3",
        "pci_ids": ("0x233010DE", "0x16C110DE"),
        "minor": index,
        "capability": (9, 0),
        "architecture": 9,
        "cores": 16896,
        "memory": (81559 * MIB, 454 * MIB, 1 * MIB),
        "bar1": (131072 * MIB, 1 * MIB),
        "addressing_mode": 0,
        "persistence": True,
        "compute_mode": 0,
        "ecc_mode": (1, 1),
        "remapped_rows": (0, 0, 0, 0),
        "power_limit": 700000,
        "power_default_limit": 700000,
        "power_limits": (200000, 700000),
        "power_usage": 68920,
        "pcie_generation_max": 5,
        "pcie_generation_gpu_max": 5,
        "pcie_generation": 5,
        "pcie_width_max": 16,
        "pcie_width": 16,
        "virtualization": 0,
        "mig_mode": (0, 0),
        "mig_max": 7,
        "c2c_mode": 0,
        "processes": "",
        "performance_state": 0,
    }
    gpu = Gpu(**{**values, **changes})  # type: ignore[arg-type]
    gpu.extra.update(
        {
            f"ecc_errors.{UNCORRECTED}.{VOLATILE}": 0,
            f"ecc_errors.0.{VOLATILE}": 0,
            f"field.{FIELD_RECOVERY_ACTION}": 0,
            f"field.{FIELD_NVLINK_COUNT}": 18,
        }
    )
    return gpu


H100_BUS = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")
H100_SWITCHES = ("0000:05:00.0", "0000:06:00.0", "0000:07:00.0", "0000:08:00.0")
# Processors of a GPU's side of two sockets with 52 cores and 104 threads each: 0-51,104-155 and 52-103,156-207.
_SOCKETS = (
    ("0xfffffffffffff", "0xffffff0000000000", "0xfffffff", 0),
    ("0xfff0000000000000", "0xffffffffff", "0xfffffffff0000000", "0xffff"),
)


def _connect(gpus: list[Gpu]) -> None:
    for index, gpu in enumerate(gpus):
        for other, peer in enumerate(gpus):
            if other != index:
                gpu.extra[f"ancestor.{other}"] = SAME_NODE if gpu.node == peer.node else SYSTEM
                if gpu.links:
                    gpu.extra[f"p2p.{other}.{P2P_NVLINK}"] = P2P_OK


def eight_h100() -> NvmlMachine:
    """An HGX H100: eight GPUs, each with 18 links to four NVSwitches."""
    gpus = []
    for index, bus in enumerate(H100_BUS):
        switches = [H100_SWITCHES[place] for place in (0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3)]
        gpu = _h100(f"0000:{bus}:00.0", index, node=index // 4, numa_node=index // 4)
        gpu.cpu_affinity = _SOCKETS[index // 4]
        gpu.links = [Link(switch, PEER_SWITCH) for switch in switches]
        gpu.fabric = (FABRIC_COMPLETED, 0, 0, 0, 0)
        gpus.append(gpu)
    _connect(gpus)
    return NvmlMachine(gpus=gpus, switches=H100_SWITCHES)


def _mig(slot: int, profile: str, instance: int, *, sms: int, mib: int, used: int, compute: int = 0) -> Mig:
    engines = int(profile[0])
    return Mig(
        uuid=f"MIG-{slot:08d}-0000-0000-0000-{slot:012d}",
        name=f"NVIDIA H100 80GB HBM3 MIG {profile}",
        gpu_instance_id=instance,
        compute_instance_id=compute,
        memory=(mib * MIB, 0, used * MIB),
        attributes=(sms, engines, engines, 0, engines, 0, engines, engines, mib),
    )


def h100_mig() -> NvmlMachine:
    """An H100 with four MIG devices: 3g.40gb, 2g.20gb and two 1g.10gb."""
    gpu = _h100("0000:00:09.0", memory=(81559 * MIB, 479 * MIB, 59 * MIB), virtualization=PASSTHROUGH, mig_mode=(1, 1))
    gpu.migs = [
        _mig(0, "3g.40gb", 2, sms=60, mib=40448, used=26),
        _mig(1, "2g.20gb", 3, sms=32, mib=20096, used=17),
        _mig(2, "1g.10gb", 9, sms=16, mib=9984, used=9),
        _mig(3, "1g.10gb", 10, sms=16, mib=9984, used=9),
    ]
    return NvmlMachine("590.48.01", "13.590.48.01", 13010, gpus=[gpu])


def two_compute_instances() -> NvmlMachine:
    """A MIG GPU in which two compute instances share the memory of one GPU instance, beside another one."""
    gpu = _h100("0000:00:09.0", mig_mode=(1, 1))
    gpu.migs = [
        _mig(0, "1c.3g.40gb", 2, sms=16, mib=40448, used=26, compute=0),
        _mig(1, "2c.3g.40gb", 2, sms=32, mib=40448, used=26, compute=1),
        _mig(2, "1g.10gb", 9, sms=16, mib=9984, used=9),
    ]
    return NvmlMachine("590.48.01", "13.590.48.01", 13010, gpus=[gpu])


def lost_among_eight(lost: int = 3, *, opens: bool = False) -> NvmlMachine:
    """An HGX H100 of which one GPU is lost: it does not open, or it opens and answers nothing."""
    machine = eight_h100()
    machine.gpus[lost].extra["fault" if opens else "open"] = GPU_IS_LOST if opens else Error(GPU_IS_LOST)
    return machine


def gb10() -> NvmlMachine:
    """A DGX Spark: no memory of its own, processes use the host's."""
    gpu = Gpu(
        bus_id="000f:01:00.0",
        uuid="GPU-35fa9bdb-0000-0000-0000-000000000001",
        name="NVIDIA GB10",
        pci_ids=("0x2E1210DE", "0x000010DE"),
        capability=(12, 1),
        architecture=10,
        cores=6144,
        addressing_mode=ADDRESSING_ATS,
        persistence=True,
        compute_mode=0,
        pcie_generation_max=1,
        pcie_generation=1,
        pcie_width_max=1,
        pcie_width=1,
        virtualization=0,
        power_usage=3000,
        processes=(4711, 2048 * MIB, 0xFFFFFFFF, 0xFFFFFFFF),
        performance_state=8,
    )
    return NvmlMachine("580.173.02", "13.580.173.02", 13000, gpus=[gpu])


def gb200() -> NvmlMachine:
    """Four GB200 of one NVLink domain: address translation with the CPU, and memory of their own."""
    gpus = []
    for index, bus in enumerate(("29", "3f", "9c", "b2")):
        gpu = _h100(f"0000:{bus}:00.0", index, node=index // 2)
        gpu.name, gpu.pci_ids = "NVIDIA GB200", ("0x294110DE", "0x204610DE")
        gpu.capability, gpu.architecture, gpu.cores = (10, 0), 10, 18944
        gpu.memory, gpu.bar1 = (189471 * MIB, 742 * MIB, 0), (262144 * MIB, 0)
        gpu.addressing_mode, gpu.virtualization, gpu.c2c_mode = ADDRESSING_ATS, PASSTHROUGH, 1
        gpu.power_limit = gpu.power_default_limit = 1200000
        gpu.power_limits = (200000, 1200000)
        gpu.pcie_generation_gpu_max, gpu.numa_node = 6, 2 + index
        # A guest sees that there are switches, and no address of one.
        gpu.links = [Link(None, PEER_SWITCH, version=5) for _ in range(18)]
        gpu.fabric, gpu.fabric_cluster = (FABRIC_COMPLETED, 0, 2, 0, FABRIC_HEALTHY), "00000001000000000000000000000001"
        gpu.extra[f"field.{FIELD_C2C_COUNT}"] = 10
        gpus.append(gpu)
    _connect(gpus)
    return NvmlMachine("580.173.02", "13.580.173.02", 13000, gpus=gpus)


def gh200() -> NvmlMachine:
    """A GH200: one Hopper beside a Grace, with its own memory that the CPU sees as a NUMA node."""
    gpu = _h100("0009:01:00.0")
    gpu.name, gpu.pci_ids = "NVIDIA GH200 480GB", ("0x234210DE", "0x16EB10DE")
    gpu.memory = (97871 * MIB, 571 * MIB, 1 * MIB)
    gpu.addressing_mode, gpu.c2c_mode, gpu.numa_node = ADDRESSING_ATS, 1, 1
    gpu.power_limit = gpu.power_default_limit = 900000
    gpu.power_limits = (100000, 900000)
    return NvmlMachine("570.124.06", "12.570.124.06", 12080, gpus=[gpu])


def v100_pair() -> NvmlMachine:
    """Two V100 with NVLink between them, four links wide; two more links are not connected."""
    gpus = []
    addresses = ("0000:06:00.0", "0000:07:00.0")
    for index, address in enumerate(addresses):
        gpu = Gpu(
            bus_id=address,
            uuid=f"GPU-70000000-0000-0000-0000-{index:012d}",
            name="Tesla V100-SXM2-16GB",
            pci_ids=("0x1DB110DE", "0x121210DE"),
            minor=index,
            capability=(7, 0),
            architecture=5,
            cores=5120,
            memory=(16384 * MIB, 240 * MIB, 0),
            bar1=(16384 * MIB, 4 * MIB),
            persistence=False,
            compute_mode=3,
            ecc_mode=(1, 0),
            retired_pages_pending=1,
            power_limit=250000,
            power_default_limit=300000,
            power_limits=(150000, 300000),
            pcie_generation_max=3,
            pcie_generation_gpu_max=3,
            pcie_generation=1,
            pcie_width_max=16,
            pcie_width=16,
            virtualization=0,
            processes="",
            links=[Link(addresses[1 - index], version=2) for _ in range(4)]
            + [Link(None, Error(NOT_SUPPORTED), state=0, version=2) for _ in range(2)],
        )
        gpu.extra[f"ecc_errors.{UNCORRECTED}.{VOLATILE}"] = 2 * index
        gpus.append(gpu)
    _connect(gpus)
    return NvmlMachine("535.161.08", "12.535.161.08", 12020, gpus=gpus)


def t4() -> NvmlMachine:
    """A T4 of a cloud machine: no MIG, no NVLink, a small BAR, half of its lanes in use."""
    gpu = Gpu(
        bus_id="0000:00:1e.0",
        uuid="GPU-7400000e-0000-0000-0000-000000000000",
        name="Tesla T4",
        pci_ids=("0x1EB810DE", "0x12A210DE"),
        capability=(7, 5),
        architecture=6,
        cores=2560,
        memory=(15360 * MIB, 448 * MIB, 0),
        bar1=(256 * MIB, 2 * MIB),
        addressing_mode=ADDRESSING_HMM,
        persistence=True,
        compute_mode=0,
        ecc_mode=(1, 1),
        retired_pages_pending=0,
        power_limit=70000,
        power_default_limit=70000,
        power_limits=(60000, 70000),
        pcie_generation_max=3,
        pcie_generation_gpu_max=3,
        pcie_generation=3,
        pcie_width_max=16,
        pcie_width=8,
        virtualization=PASSTHROUGH,
        processes="",
    )
    return NvmlMachine("595.91.07", "13.595.91.07", 13020, gpus=[gpu])


def vgpu_guest() -> NvmlMachine:
    """A virtual machine with a share of a P4."""
    gpu = Gpu(
        bus_id="0000:02:01.0",
        uuid="GPU-e0000000-0000-0000-0000-000000000000",
        name="GRID P4-1Q",
        pci_ids=("0x1BB310DE", "0x120410DE"),
        capability=(6, 1),
        architecture=4,
        cores=2560,
        memory=(1024 * MIB, 0, 160 * MIB),
        bar1=(256 * MIB, 0),
        persistence=True,
        compute_mode=0,
        virtualization=VGPU_GUEST,
        processes="",
    )
    return NvmlMachine("535.129.03", "12.535.129.03", 12020, gpus=[gpu])


def jetson_orin() -> NvmlMachine:
    """A Jetson Orin: not on PCI, no driver version, hardly any answer."""
    gpu = Gpu(
        bus_id=None,
        uuid="GPU-0a000000-0000-0000-0000-000000000000",
        name="Orin (nvgpu)",
        minor=None,
        capability=(8, 7),
        architecture=7,
    )
    return NvmlMachine(None, "12.540.3.0", 12020, gpus=[gpu])


# The same machines on the PCI bus


def pci_files(machine: NvmlMachine, suspended: tuple[int, ...] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """The files and the symbolic links of sysfs that show the GPUs and NVSwitches of `machine`.

    Each hangs at a host bridge of its own. GPUs whose numbers are in `suspended` sleep.
    """
    files: dict[str, str] = {}
    links: dict[str, str] = {}

    def add(address: str, values: dict[str, str], driver: str) -> None:
        domain, bus, _ = address.split(":")
        parent = f"{max(int(bus, 16) - 1, 0):02x}"
        place = f"devices/pci{domain}:{parent}/{domain}:{parent}:01.0/{address}"
        files.update({f"sys/{place}/{name}": f"{text}\n" for name, text in values.items()})
        links[f"sys/bus/pci/devices/{address}"] = f"../../../{place}"
        links[f"sys/{place}/driver"] = f"../../../../bus/pci/drivers/{driver}"

    for index, gpu in enumerate(machine.gpus):
        if gpu.bus_id is None:
            continue
        device, subsystem = (int(str(part), 0) for part in gpu.pci_ids)  # type: ignore[union-attr]
        values = {
            "vendor": f"0x{device & 0xFFFF:04x}",
            "device": f"0x{device >> 16:04x}",
            "subsystem_vendor": f"0x{subsystem & 0xFFFF:04x}",
            "subsystem_device": f"0x{subsystem >> 16:04x}",
            "class": "0x030200",
            "revision": "0xa1",
            "numa_node": str(gpu.node),
            "local_cpulist": ("0-51,104-155", "52-103,156-207")[gpu.node],
            "power/runtime_status": "suspended" if index in suspended else "active",
        }
        add(gpu.bus_id, values, "nvidia")
    for switch in machine.switches:
        add(switch, {"vendor": "0x10de", "device": "0x22a3", "class": "0x068000", "numa_node": "0"}, "nvidia")
    return files, links
