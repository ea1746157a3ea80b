# SPDX-License-Identifier: Apache-2.0
"""Machines with AMD and Intel GPUs as ``gpu_facts`` tells of them, as far as driver decisions look."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "group_vars" / "all" / "drivers.yml").read_text(encoding="utf-8"))[
    "inference_drivers"
]
GIB = 1024**3

#: Operating system → id, version, code name, family, a kernel of it.
SYSTEMS = {
    "debian 12": ("debian", "12", "bookworm", "debian", "6.1.0-40-amd64"),
    "debian 13": ("debian", "13", "trixie", "debian", "6.12.57+deb13-amd64"),
    "ubuntu 22.04": ("ubuntu", "22.04", "jammy", "debian", "6.8.0-87-generic"),
    "ubuntu 24.04": ("ubuntu", "24.04", "noble", "debian", "6.14.0-36-generic"),
    "ubuntu 26.04": ("ubuntu", "26.04", "resolute", "debian", "7.0.0-14-generic"),
    "rhel 9": ("rocky", "9.6", None, "redhat", "5.14.0-570.el9.x86_64"),
    "rhel 10": ("rhel", "10.0", None, "redhat", "6.12.0-55.el10_0.x86_64"),
}
#: gfx target → generation, name, whether it is part of a processor.
AMD = {
    "gfx908": ("cdna1", "AMD Instinct MI100", False),
    "gfx90a": ("cdna2", "AMD Instinct MI210", False),
    "gfx942": ("cdna3", "AMD Instinct MI300X", False),
    "gfx950": ("cdna4", "AMD Instinct MI355X", False),
    "gfx803": ("gcn4", "Radeon RX 580", False),
    "gfx1030": ("rdna2", "Radeon RX 6900 XT", False),
    "gfx1100": ("rdna3", "Radeon RX 7900 XTX", False),
    "gfx1103": ("rdna3", "Radeon 780M", True),
    "gfx1151": ("rdna3.5", "Radeon 8060S", True),
    "gfx1201": ("rdna4", "Radeon RX 9070 XT", False),
}


def amd_gpu(target: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """An AMD GPU that amdgpu drives."""
    generation, name, integrated = AMD[target]
    device = {
        "vendor": "amd",
        "pci_bus_id": f"0000:{0x21 + number:02x}:00.0",
        "name": name,
        "architecture": target,
        "generation": generation,
        "integrated": integrated,
        "usable": not integrated,
        "driver_bound": "amdgpu",
    }
    return {**device, **more}


def intel_gpu(**more: Any) -> dict[str, Any]:
    """An Intel Arc B580 that xe drives."""
    device = {
        "vendor": "intel",
        "pci_bus_id": "0000:03:00.0",
        "name": "Intel Arc B580",
        "architecture": "xe2",
        "generation": "battlemage",
        "integrated": False,
        "usable": True,
        "driver_bound": "xe",
    }
    return {**device, **more}


def package(version: str = "1", state: str = "installed", held: bool = False) -> dict[str, Any]:
    """A package as the facts have it."""
    return {"version": version, "state": state, "held": held}


def machine(system: str, *devices: dict[str, Any], **boot: Any) -> dict[str, Any]:
    """A machine that runs its distribution's kernel, whose amdgpu is there; ``boot`` changes those facts."""
    name, version, codename, family, kernel = SYSTEMS[system]
    module = {"version": None, "flavour": None, "dkms": False, "signed": True}
    kernels = [
        {
            "release": kernel,
            "image": True,
            "headers": False,
            "initramfs": True,
            "initramfs_stale": False,
            "modules": {"amdgpu": module},
        }
    ]
    flavour = kernel.rsplit("-", 1)[-1]
    return {
        "schema_version": 1,
        "cpu": {"architecture": "x86_64"},
        "devices": list(devices),
        "driver": {"amdgpu_version": None, "reboot_required": False},
        "os": {"id": name, "version_id": version, "codename": codename, "family": family, "kernel": kernel},
        "boot": {
            "secure_boot": False,
            "running_kernel": kernel,
            "next_kernel": kernel,
            "kernels": kernels,
            "command_line": ["quiet"],
            "loaded": ["amdgpu"],
            "blacklisted": [],
            "free_bytes": {"/": 50 * GIB, "/boot": GIB, "/var": 50 * GIB},
            "iommu": "pt",
            "numa_balancing": False,
            **boot,
        },
        "packages": {f"linux-image-{flavour}": package(), "initramfs-tools": package()} if family == "debian" else None,
        "files": {},
        "units": {},
        "groups": {"render": 104, "video": 44},
        "vulkan": None,
    }


def add_packages(facts: dict[str, Any], *names: str, **more: Any) -> None:
    """Install packages on a machine."""
    facts["packages"].update({name: package(**more) for name in names})


def write_files(facts: dict[str, Any], *entries: dict[str, str]) -> None:
    """Put a plan's files on a machine."""
    for entry in entries:
        facts["files"][entry["path"]] = hashlib.sha256(entry["content"].encode()).hexdigest()
