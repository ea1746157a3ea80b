# SPDX-License-Identifier: Apache-2.0
"""Facts of machines, written by hand, and the project's own catalog."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
GIB = 1024**3
MIB = 1024**2
H100 = "NVIDIA H100 80GB HBM3"


def catalog() -> dict[str, Any]:
    """Return the project's catalog."""
    group_vars = ROOT / "group_vars" / "all"
    return {
        "models": yaml.safe_load((group_vars / "models.yml").read_text(encoding="utf-8"))["inference_models"],
        "engines": yaml.safe_load((group_vars / "engines.yml").read_text(encoding="utf-8"))["inference_engines"],
    }


def facts(**changes: Any) -> dict[str, Any]:
    """Return the facts of a CPU node (2 cores, 24 GiB), with changes."""
    base: dict[str, Any] = {
        "schema_version": 1,
        "tier": "cpu",
        "vendor": None,
        "vendors": [],
        "physical_count": 0,
        "usable_count": 0,
        "driver": {"version": None, "cuda_version": None, "rocm_version": None, "reboot_required": False},
        "devices": [],
        "cpu": {"model": "AMD EPYC", "architecture": "x86_64", "cores": 2, "flags": ["avx2"]},
        "memory_total_bytes": 24 * GIB,
        "memory_available_bytes": 20 * GIB,
        "network": {"addresses": ["127.0.0.1", "192.0.2.11", "2001:db8::11"]},
        "listening": [{"address": "0.0.0.0", "port": 22, "process": "sshd"}],
        "runtime": {"docker": None, "podman": None, "toolkit": None, "cdi": {"specs": [], "devices": []}},
        "services": [],
        "errors": [],
    }
    return {**copy.deepcopy(base), **changes}


def device(name: str, memory: int | None, architecture: str | None, **changes: Any) -> dict[str, Any]:
    """Return one usable GPU; ``memory`` in MiB."""
    index = changes.get("index", 0)
    base = {
        "index": index,
        "uuid": f"GPU-{index:08d}-aaaa-bbbb-cccc-dddddddddddd",
        "pci_bus_id": f"0000:{index + 1:02x}:00.0",
        "vendor": "nvidia",
        "name": name,
        "architecture": architecture,
        "memory_total_bytes": None if memory is None else memory * MIB,
        "memory_used_bytes": 0,
        "unified_memory": False,
        "integrated": False,
        "render_node": f"/dev/dri/renderD{128 + index}",
        "usable": True,
        "unusable_reason": None,
    }
    return {**base, **changes}


def gpu_facts(tier: str, devices: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return the facts of a node with GPUs and 64 GiB of memory."""
    driver = {"version": "580.95.05", "cuda_version": "13.0"} if tier == "cuda" else {"version": None}
    return facts(
        **{
            "tier": tier,
            "vendor": devices[0]["vendor"],
            "vendors": sorted({item["vendor"] for item in devices}),
            "physical_count": len(devices),
            "usable_count": sum(1 for item in devices if item["usable"]),
            "devices": devices,
            "driver": {**driver, "reboot_required": False},
            "cpu": {"model": "CPU", "architecture": "x86_64", "cores": 16, "flags": []},
            "memory_total_bytes": 64 * GIB,
            **changes,
        }
    )


def cuda(
    name: str, memory: int, architecture: str, driver: str = "580.95.05", version: str = "13.0", **changes: Any
) -> Any:
    """Return the facts of a node with one NVIDIA GPU; ``memory`` in MiB."""
    gpu = device(name, memory, architecture)
    changes.setdefault("driver", {"version": driver, "cuda_version": version, "reboot_required": False})
    return gpu_facts("cuda", [gpu], **changes)


def amd(name: str, memory: int, architecture: str, tier: str = "rocm", **changes: Any) -> dict[str, Any]:
    """Return the facts of a node with one AMD GPU; ``memory`` in MiB."""
    return gpu_facts(tier, [device(name, memory, architecture, vendor="amd", uuid="amd-0001")], **changes)


def instance(index: int, profile: str = "1g.10gb", memory: int = 9856, **changes: Any) -> dict[str, Any]:
    """Return a MIG instance; ``memory`` in MiB."""
    return {
        "index": index,
        "uuid": f"MIG-{index:08d}",
        "profile": profile,
        "gpu_instance_id": index + 7,
        "compute_instance_id": 0,
        "memory_total_bytes": memory * MIB,
        "memory_shared": False,
        **changes,
    }


def mig_gpu(instances: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return an H100 in MIG mode."""
    reason = (
        "MIG is enabled, its instances are used in its place" if instances else "MIG is enabled and has no instances"
    )
    mig = {"mode": True, "pending_mode": True, "instances": instances}
    return device(H100, 81559, "9.0", **{"mig": mig, "usable": False, "unusable_reason": reason, **changes})


def mi300x(count: int = 8, **changes: Any) -> dict[str, Any]:
    """Return an MI300X in CPX mode with so many partitions of 24 GiB."""
    instances = [
        {
            "architecture": "gfx942",
            "kfd_node": number,
            "render_node": f"/dev/dri/renderD{128 + number}",
            "memory_total_bytes": 24 * GIB,
        }
        for number in range(count)
    ]
    partition = {"compute": "CPX", "memory": "NPS4", "count": count, "instances": instances}
    base = {"vendor": "amd", "uuid": "GPU-a1", "pci_bus_id": "0000:c1:00.0", "partition": partition}
    return device("AMD Instinct MI300X", 196608, "gfx942", **{**base, **changes})


MACHINES = {
    "cpu": facts(),
    "rtx3090": cuda("NVIDIA GeForce RTX 3090", 24576, "8.6"),
    "t4": cuda("Tesla T4", 15360, "7.5", driver="570.172.08", version="12.8"),
    "h100": cuda("NVIDIA H100 80GB HBM3", 81559, "9.0"),
    "v100": cuda("Tesla V100-SXM2-32GB", 32768, "7.0"),
    "gb10": gpu_facts(
        "cuda",
        [device("NVIDIA GB10", None, "12.1", unified_memory=True)],
        cpu={"architecture": "aarch64", "cores": 20},
        memory_total_bytes=120 * GIB,
    ),
    "mi300x": amd("AMD Instinct MI300X", 196608, "gfx942"),
    "rx7900": amd("AMD Radeon RX 7900 XTX", 24560, "gfx1100"),
    "arc": gpu_facts("vulkan", [device("Intel Arc A770", 16256, None, vendor="intel", uuid=None)]),
    # One GPU in MIG mode beside one that is whole; two cards in eight partitions each.
    "h100-mig": gpu_facts(
        "cuda",
        [
            mig_gpu([instance(0, "3g.40gb", 40448), *(instance(number) for number in range(1, 5))]),
            device(H100, 81559, "9.0", index=1),
        ],
        memory_total_bytes=512 * GIB,
    ),
    "mi300x-cpx": gpu_facts(
        "rocm",
        [mi300x(index=index, uuid=f"GPU-a{index}", pci_bus_id=f"0000:c{index}:00.0") for index in (1, 2)],
        memory_total_bytes=1024 * GIB,
    ),
}
