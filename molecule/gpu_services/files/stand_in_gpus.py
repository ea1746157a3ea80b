#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what the kernel shows of one NVIDIA L40S or one AMD Instinct MI300X, at every boot of the node.

Files are laid over /sys and put in the place of /proc/driver, and the device nodes do what /dev/null does. Usage:
stand_in_gpus.py nvidia|amd
"""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
from pathlib import Path

TREE = Path("/run/stand-in")
ADDRESS = "0000:41:00.0"
PCI = f"sys/bus/pci/devices/{ADDRESS}"
NVIDIA_DRIVER = "580.95.05"
MI300X_BYTES = 206141652992

NVIDIA = {
    f"{PCI}/vendor": "0x10de",
    f"{PCI}/device": "0x26b9",
    f"{PCI}/class": "0x030200",
    f"{PCI}/numa_node": "0",
    "sys/module/nvidia/version": NVIDIA_DRIVER,
    "sys/module/nvidia/taint": "OE",
    "sys/module/nvidia_uvm/taint": "OE",
    "proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {NVIDIA_DRIVER}  Release",
    f"proc/driver/nvidia/gpus/{ADDRESS}/information": "Model: \t\t NVIDIA L40S\nDevice Minor: \t 0",
}
NODE = "sys/class/kfd/kfd/topology/nodes/1"
AMD = {
    f"{PCI}/vendor": "0x1002",
    f"{PCI}/device": "0x74a1",
    f"{PCI}/class": "0x120000",
    f"{PCI}/numa_node": "0",
    f"{PCI}/unique_id": "5a6b7c8d9e0f1a2b",
    f"{PCI}/mem_info_vram_total": str(MI300X_BYTES),
    f"{PCI}/mem_info_vram_used": "297762816",
    f"{PCI}/drm/renderD128/dev": "226:128",
    "sys/module/amdgpu/initstate": "live",
    f"{NODE}/properties": "\n".join(
        [
            "cpu_cores_count 0",
            "simd_count 1216",
            "simd_per_cu 4",
            "vendor_id 4098",
            "device_id 29857",
            "gfx_target_version 90402",
            "location_id 16640",
            "domain 0",
            "drm_render_minor 128",
            f"unique_id {0x5A6B7C8D9E0F1A2B}",
        ]
    ),
    f"{NODE}/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {MI300X_BYTES}",
    f"{NODE}/mem_banks/0/used_memory": "297762816",
}


def make_node(path: str, group: str, mode: int) -> None:
    """Make a device node that does what /dev/null does."""
    node = Path(path)
    node.parent.mkdir(exist_ok=True)
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFCHR | mode, os.makedev(1, 3))
    os.chown(node, 0, grp.getgrnam(group).gr_gid)
    node.chmod(mode)


def main(vendor: str) -> None:
    """Show the GPU."""
    for name, content in {"nvidia": NVIDIA, "amd": AMD}[vendor].items():
        file = TREE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    driver = {"nvidia": "nvidia", "amd": "amdgpu"}[vendor]
    link = TREE / PCI / "driver"
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../../../bus/pci/drivers/{driver}")
    for place in ("sys/bus/pci/devices", "sys/class", "sys/module"):
        if (TREE / place).is_dir():
            options = f"lowerdir={TREE / place}:/{place}"
            subprocess.run(["mount", "-t", "overlay", "stand-in", "-o", options, f"/{place}"], check=True)
    if vendor == "nvidia":
        subprocess.run(["mount", "--bind", TREE / "proc/driver", "/proc/driver"], check=True)
        for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
            make_node(f"/dev/{name}", "root", 0o666)
    else:
        # The kernel has the driver, as far as depmod knows.
        modules, driver = Path("/lib/modules", os.uname().release), "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko.xz"
        (modules / driver).parent.mkdir(parents=True, exist_ok=True)
        (modules / driver).touch()
        (modules / "modules.dep").write_text(f"{driver}:\n")
        make_node("/dev/kfd", "render", 0o660)
        make_node("/dev/dri/renderD128", "render", 0o660)


if __name__ == "__main__":
    main(sys.argv[1])
