# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import cpu, runtime, summary, system
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import new_device
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
DRIVER = {
    "version": "570.124.06",
    "library_version": "570.124.06",
    "kernel_module_version": "570.124.06",
    "module_flavour": "open",
    "cuda_version": "12.8",
    "mismatch": False,
    "rocm_version": None,
    "amdgpu_version": None,
    "reboot_required": False,
    "reboot_reason": None,
}


def h100(index: int, **known: Any) -> dict[str, Any]:
    record = {
        "index": index,
        "name": "NVIDIA H100 80GB HBM3",
        "architecture": "9.0",
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": GIB // 2,
        "numa_node": index // 4,
        "health": "ok",
        "usable": True,
    }
    return new_device("nvidia", f"0000:{0x1B + index:02x}:00.0", **{**record, **known})


def node(*devices: dict[str, Any], **known: Any) -> dict[str, Any]:
    facts = {
        "schema_version": 1,
        "tier": "cuda",
        "vendor": "nvidia",
        "physical_count": len(devices),
        "usable_count": sum(device["usable"] for device in devices),
        "driver": DRIVER,
        "devices": list(devices),
        "topology": {"matrix": [], "link_domains": []},
        "nvswitch_count": 0,
        "numa": [{"node": 0, "cpus": "0-111"}, {"node": 1, "cpus": "112-223"}, {"node": 2, "cpus": None}],
        "cpu": {
            "model": "Intel(R) Xeon(R) Platinum 8480C",
            "architecture": "x86_64",
            "sockets": 2,
            "physical_cores": 112,
            "threads": 224,
            "cores": 224,
            "flags": ["amx_tile", "avx2", "avx512f", "avx_vnni"],
        },
        "memory_total_bytes": 2048 * GIB,
        "memory_available_bytes": 2000 * GIB,
        "os": {**dict.fromkeys(system.OS_KEYS), "hostname": "gpu-01", "id": "ubuntu", "version_id": "24.04"},
        "storage": {
            "path": "/var/lib/inference-fleet",
            "free_bytes": 900 * GIB,
            "total_bytes": 1000 * GIB,
            "filesystem": "xfs",
            "mount_point": "/var",
            "rotational": False,
        },
        "runtime": {
            "docker": {"version": "28.2.2", "running": True, "cdi": True},
            "podman": None,
            "toolkit": {"version": "1.17.5", "runtime_configured": True},
            "cdi": {"specs": ["/etc/cdi/a"], "devices": ["a"] * 9, "nvidia_driver_version": "1", "stale": False},
        },
        "services": [],
        "errors": [],
    }
    return {**facts, **known}


def test_eight_gpus() -> None:
    devices = [h100(index) for index in range(8)]
    devices[3].update(usable=False, health="lost", unusable_reason="it is lost", memory_used_bytes=None)
    devices[3]["memory_total_bytes"] = devices[3]["name"] = None
    domain = {"type": "nvlink", "numa_node": None, "devices": [0, 1, 2, 4, 5, 6, 7]}
    facts = node(*devices, nvswitch_count=4, topology={"matrix": [], "link_domains": [domain]})
    facts["os"].update(kernel="6.8.0-55-generic", systemd_version=255)
    facts["services"] = [
        {"name": "chat", "backend": "vllm", "model": "qwen3", "port": 8003, "address": "10.0.0.1"},
        {"name": "small", "backend": "ollama", "model": None, "port": None, "address": None},
    ]
    facts["errors"] = [{"source": "nvml", "message": "GPU 3 is lost"}]
    assert summary.lines(facts) == [
        "Node      gpu-01, ubuntu 24.04, kernel 6.8.0-55-generic, systemd 255",
        "Tier      cuda, 8 GPUs, usable: 7, 4 NVSwitches",
        "Driver    570.124.06 (open), CUDA 12.8",
        "GPUs         Name                   Memory used / total  Arch  PCI           NUMA  State",
        "          0  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:1b:00.0  0     ok",
        "          1  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:1c:00.0  0     ok",
        "          2  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:1d:00.0  0     ok",
        "          3  -                      -                    9.0   0000:1e:00.0  0     it is lost",
        "          4  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:1f:00.0  1     ok",
        "          5  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:20:00.0  1     ok",
        "          6  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:21:00.0  1     ok",
        "          7  NVIDIA H100 80GB HBM3  0.5 / 80.0 GiB       9.0   0000:22:00.0  1     ok",
        "Links     NVLink 0-2, 4-7",
        "CPU       2 x Intel(R) Xeon(R) Platinum 8480C, 112 cores, 224 threads, AMX AVX-512 AVX-VNNI AVX2",
        "Memory    2000.0 of 2048.0 GiB available, 2 NUMA nodes",
        "Storage   900.0 of 1000.0 GiB free for /var/lib/inference-fleet, xfs",
        "Runtime   Docker 28.2.2 (running, CDI on), NVIDIA container toolkit 1.17.5, 9 CDI devices",
        "Services  chat, vllm, qwen3, 10.0.0.1:8003",
        "          small, ollama",
        "Errors    nvml: GPU 3 is lost",
    ]


def test_nothing_known() -> None:
    facts = node(tier="cpu", nvswitch_count=None, numa=[], cpu=cpu.UNKNOWN, memory_total_bytes=None)
    facts["os"] = dict.fromkeys(system.OS_KEYS)
    facts["storage"] = system.no_storage("/var/lib/inference-fleet")
    facts["runtime"] = {"docker": None, "podman": None, "toolkit": None, "cdi": runtime.NO_CDI}
    facts["driver"] = dict.fromkeys(DRIVER)
    rest = ["GPUs      none", "Runtime   no container engine"]
    assert summary.lines(facts) == ["Tier      cpu, 0 GPUs", *rest]
    assert summary.lines({}) == ["Tier      0 GPUs", *rest]


def test_mig_instances_are_below_their_gpu() -> None:
    instance = {"index": 0, "profile": "1g.10gb", "memory_total_bytes": 10 * GIB, "memory_shared": False}
    instances = [instance, {**instance, "index": 1, "profile": "1c.2g.20gb", "memory_shared": True}]
    devices = [
        h100(0, mig={"mode": True, "instances": instances}, usable=False, unusable_reason="MIG is enabled"),
        h100(1, mig={"mode": True, "instances": []}, usable=False, unusable_reason="MIG is enabled"),
    ]
    found = summary.lines(node(*devices))
    row = next(number for number, line in enumerate(found) if "0000:1b:00.0" in line)
    assert [line.strip() for line in found[row + 1 : row + 3]] == [
        "MIG 0: 1g.10gb, 10.0 GiB",
        "MIG 1: 1c.2g.20gb, 10.0 GiB (shared)",
    ]
    assert found[row].endswith("  MIG") and found[row + 3].endswith("  MIG without instances")


def test_partitions_are_told_on_one_line() -> None:
    instances = [{"kfd_node": number, "memory_total_bytes": 24 * GIB} for number in range(8)]
    partition = {"compute": "CPX", "memory": "NPS4", "count": 8, "instances": instances}
    device = new_device("amd", "0000:05:00.0", index=0, usable=True, partition=partition, architecture="gfx942")
    assert "CPX/NPS4: 8 partitions, 24.0 GiB each" in [line.strip() for line in summary.lines(node(device))]
    unknown = new_device("amd", "0000:05:00.0", index=0, partition={"compute": None, "memory": None, "count": None})
    assert "partitioned" in [line.strip() for line in summary.lines(node(unknown))]


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ({}, "ok"),
        ({"health": None}, "ok"),
        ({"health": "reset_required"}, "reset required"),
        ({"usable": False}, "not usable"),
        ({"usable": False, "health": "lost", "unusable_reason": "bound to vfio-pci"}, "bound to vfio-pci"),
        ({"unified_memory": True}, "ok, unified memory"),
        ({"power_state": "suspended"}, "ok, asleep"),
        ({"virtualization": "vgpu_guest"}, "ok, vGPU"),
        ({"virtualization": "passthrough"}, "ok"),
        ({"ecc": {"uncorrected": 2, "remap_pending": True}}, "ok, 2 uncorrected ECC errors, row remapping pending"),
        ({"ecc": {"uncorrected": 0, "remap_failure": True}}, "ok, row remapping failed"),
    ],
)
def test_state(known: dict[str, Any], state: str) -> None:
    row = next(line for line in summary.lines(node(h100(0, **known))) if "0000:1b:00.0" in line)
    assert row.split("  ")[-1].strip() == state


def test_two_vendors_have_their_names_and_each_domain_its_node() -> None:
    devices = [
        *(h100(index, numa_node=index) for index in (0, 1)),
        new_device("amd", "0000:05:00.0", index=0, usable=True),
        new_device("amd", "0000:06:00.0", index=1, usable=True),
    ]
    domains = [
        {"type": "pcie", "numa_node": 0, "devices": [0]},
        {"type": "pcie", "numa_node": 1, "devices": [1]},
        {"type": "xgmi", "numa_node": None, "devices": [2, 3]},
    ]
    found = summary.lines(node(*devices, topology={"matrix": [], "link_domains": domains}))
    assert "Links     PCIe NVIDIA 0 (NUMA 0); PCIe NVIDIA 1 (NUMA 1); xGMI AMD 0, AMD 1" in found
    assert sum("AMD 1 " in line for line in found) == 1


def test_what_needs_attention() -> None:
    facts = copy.deepcopy(node(h100(0)))
    facts["driver"].update(mismatch=True, library_version="575.57.08", reboot_reason="the driver was upgraded")
    facts["runtime"]["cdi"].update(stale=True, nvidia_driver_version="550.54.15")
    facts["runtime"]["docker"].update(running=None, cdi=False)
    facts["os"].update(container="lxc", wsl=True)
    facts["cpu"].update(cores=16)
    found = "\n".join(summary.lines(facts))
    for part in (
        "library 575.57.08 does not match the loaded module 570.124.06",
        "Reboot    the driver was upgraded",
        "9 CDI devices for driver 550.54.15, which is not the loaded one",
        "Docker 28.2.2 (not answering, CDI off)",
        "in a container (lxc), in WSL",
        "224 threads, 16 of them usable",
    ):
        assert part in found


def test_facts_of_a_machine(machine: Any) -> None:
    machine.gpu("0000:01:00.0", 0x10DE)
    machine.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: EPYC\n")
    found = summary.lines(machine.facts())
    assert any("0000:01:00.0" in line for line in found)
    assert "CPU       EPYC, 1 thread" in found


@given(st.data())
def test_any_field_may_be_unknown(data: st.DataObject) -> None:
    mig = {"mode": True, "instances": [{"index": 0, "profile": "1g.10gb", "memory_total_bytes": GIB}]}
    partition = {"compute": "CPX", "memory": "NPS4", "count": 2, "instances": [{"memory_total_bytes": GIB}]}
    domain = {"type": "nvlink", "numa_node": 0, "devices": [0, 1, 2]}
    facts = node(h100(0, mig=mig), h100(1, partition=partition), h100(2), topology={"link_domains": [domain]})
    facts["services"] = [{"name": "a", "backend": "b", "model": "c", "port": 1, "address": "d"}]
    facts["errors"] = [{"source": "a", "message": "b"}]

    def erase(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: erase(item) if data.draw(st.integers(0, 4)) else None for key, item in value.items()}
        return [erase(item) for item in value] if isinstance(value, list) else value

    found = summary.lines(erase(json.loads(json.dumps(facts))))
    assert found and all(isinstance(line, str) and "\n" not in line for line in found)
