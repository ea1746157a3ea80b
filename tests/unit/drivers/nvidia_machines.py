# SPDX-License-Identifier: Apache-2.0
"""Facts of machines with NVIDIA GPUs, written by hand, for the decisions on their driver."""

from __future__ import annotations

import copy
import functools
import hashlib
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.fleet.inference.plugins.module_utils.drivers import nvidia

ROOT = Path(__file__).resolve().parents[3]
GIB = 1024**3

#: GPU by generation: name and compute capability.
GPUS = {
    "kepler": ("Tesla K80", "3.7"),
    "maxwell": ("Tesla M40", "5.2"),
    "pascal": ("Tesla P40", "6.1"),
    "volta": ("Tesla V100", "7.0"),
    "turing": ("Tesla T4", "7.5"),
    "ampere": ("NVIDIA A100", "8.0"),
    "ada": ("NVIDIA L40S", "8.9"),
    "hopper": ("NVIDIA H100", "9.0"),
    "blackwell": ("NVIDIA B200", "10.0"),
}
#: Operating system: id, version, family, and a kernel as it names them.
SYSTEMS = {
    "debian 12": ("debian", "12", "debian", "6.1.0-41-cloud-amd64"),
    "debian 13": ("debian", "13", "debian", "6.12.48+deb13-amd64"),
    "ubuntu 22.04": ("ubuntu", "22.04", "debian", "5.15.0-157-generic"),
    "ubuntu 24.04": ("ubuntu", "24.04", "debian", "6.8.0-86-generic"),
    "ubuntu 26.04": ("ubuntu", "26.04", "debian", "7.0.0-12-generic"),
    "rhel 9": ("rocky", "9.6", "redhat", "5.14.0-570.el9.x86_64"),
    "rhel 10": ("rhel", "10.0", "redhat", "6.12.0-55.el10.x86_64"),
}


@functools.cache
def table() -> dict[str, Any]:
    """Return the project's driver table."""
    text = (ROOT / "group_vars" / "all" / "drivers.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["inference_drivers"])


@functools.cache
def _defaults() -> dict[str, Any]:
    text = (ROOT / "roles" / "nvidia_driver" / "defaults" / "main.yml").read_text(encoding="utf-8")
    return {name: value for name, value in yaml.safe_load(text).items() if name in nvidia.VARIABLES}


def variables(**changes: Any) -> dict[str, Any]:
    """Return the role's defaults, with changes given without the role's name."""
    return {**_defaults(), **{f"nvidia_driver_{name}": value for name, value in changes.items()}}


def gpu(generation: str, index: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a GPU that no driver is bound to."""
    name, architecture = GPUS[generation]
    base = {
        "index": index,
        "vendor": "nvidia",
        "name": name,
        "generation": generation,
        "architecture": architecture,
        "pci_bus_id": f"0000:{index + 1:02x}:00.0",
        "driver_bound": None,
    }
    return {**base, **changes}


def facts(system: str = "debian 13", *gpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the facts of a bare machine: no driver, no headers, one kernel."""
    name, version, family, release = SYSTEMS[system]
    base: dict[str, Any] = {
        "devices": list(gpus) or [gpu("ampere")],
        "nvswitch_count": 0,
        "cpu": {"architecture": "x86_64"},
        "os": {"id": name, "version_id": version, "family": family, "kernel": release},
        "driver": {
            "version": None,
            "library_version": None,
            "kernel_module_version": None,
            "module_flavour": None,
            "reboot_required": False,
            "reboot_reason": None,
        },
        "boot": {
            "secure_boot": False,
            "running_kernel": release,
            "next_kernel": release,
            "kernels": [kernel(release)],
            "loaded": [],
            "blacklisted": [],
            "free_bytes": {"/": 50 * GIB, "/boot": GIB, "/var": 50 * GIB},
        },
        "packages": None if family == "redhat" else {f"linux-image-{meta(system)}": installed("1")},
        "files": {},
        "units": {},
    }
    return {**base, **copy.deepcopy(changes)}


def meta(system: str) -> str:
    """Return how the distribution calls the kernel's kind."""
    return "generic" if system.startswith("ubuntu") else SYSTEMS[system][3].split("-", 2)[-1].removeprefix("41-")


def kernel(release: str, **changes: Any) -> dict[str, Any]:
    """Return a kernel without headers and module."""
    base = {
        "release": release,
        "image": True,
        "headers": False,
        "initramfs": True,
        "initramfs_stale": False,
        "modules": {},
    }
    return {**base, **changes}


def module(version: str, flavour: str = "open", **changes: Any) -> dict[str, Any]:
    """Return NVIDIA's module of a kernel."""
    return {"nvidia": {"version": version, "flavour": flavour, "dkms": True, "signed": False, **changes}}


def installed(version: str, **changes: Any) -> dict[str, Any]:
    """Return an installed package."""
    return {"version": version, "state": "installed", "held": False, **changes}


def digest(content: str) -> str:
    """Return the hash that the facts have of a file."""
    return hashlib.sha256(content.encode()).hexdigest()


def decide(node: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the decision for a machine, whose driver is the distribution's unless another source is wished."""
    return nvidia.plan("gpu-07", node, variables(**{"source": "distribution", **changes}), table())


def converged(node: dict[str, Any], version: str, **changes: Any) -> dict[str, Any]:
    """Return the facts after the role has done what it decides for the machine, and the machine was restarted."""
    node = copy.deepcopy(node)
    plan = decide(node, **changes)
    release = plan["kernel"]
    # The driver's packages have its version; the others have one of their own.
    for entry in plan["packages"]["install"]:
        name, _, wanted = entry.partition("=")
        own = "1" if name.startswith("linux-") else f"{wanted.removesuffix('-*') or version}-1"
        node["packages"][name] = installed(own, held=True)
    for name in plan["packages"]["remove"]:
        node["packages"].pop(name, None)
    for name, package in node["packages"].items():
        package["held"] = package["held"] or name.startswith("linux-")
    for entry in (*plan["files"], *plan["package_files"]):
        node["files"][entry["path"]] = digest(entry["content"])
    if plan["repository"]:
        node["files"][plan["repository"]["key_path"]] = digest("key")
    for item in node["boot"]["kernels"]:
        if item["release"] == release:
            item.update(headers=True, modules=module(version, plan["flavour"]))
    node["boot"].update(running_kernel=release, loaded=["nvidia"])
    node["driver"].update(
        library_version=version, kernel_module_version=version, module_flavour=plan["flavour"], reboot_required=False
    )
    node["units"] = {unit: {"enabled": True, "active": True} for unit in plan["units"]}
    for item in node["devices"]:
        item["driver_bound"] = "nvidia"
    return node
