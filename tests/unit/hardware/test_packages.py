# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

STATUS = """Package: zlib1g
Status: install ok installed
Version: 1

Package: nvidia-smi
Status: hold ok installed
Architecture: amd64
Version: 550.163.01-2

Package: libnvidia-ml1
Status: install ok installed
Architecture: amd64
Version: 550.163.01-2

Package: libnvidia-ml1
Status: install ok installed
Architecture: i386
Version: 550.163.01-1

Package: nvidia-open-kernel-dkms
Status: install ok half-configured
Architecture: amd64
Version: 550.163.01-2

Package: cuda-drivers
Status: install reinstreq half-installed
Architecture: amd64

Package: dkms-not-ours
Status: install ok installed
Version: 1

Package: dkms
Status: install ok installed
Architecture: all
Version: 3.2.2-1

Package: linux-image-amd64
Status: install ok installed
Architecture: amd64
Version: 6.12.43-1

Package: linux-libc-dev
Status: install ok installed
Version: 6.12.43-1

Package: nvidia-persistenced
Status: deinstall ok config-files
Architecture: amd64
Version: 550.163.01-1

Package: rocminfo
Status: deinstall ok not-installed
Architecture: amd64

Package: docker.io
Status: hold ok installed
Version: 26.1.5+dfsg1-9+b9
"""


def test_without_dpkg(machine: Any) -> None:
    assert machine.facts()["packages"] is None
    machine.write("var/lib/dpkg/status", "")
    assert machine.facts()["packages"] == {}


def test_packages_of_gpus_and_kernels(machine: Any) -> None:
    machine.write("var/lib/dpkg/status", STATUS)
    machine.write("var/lib/dpkg/arch", "amd64\ni386\n")
    facts = machine.facts()
    rows = {name: tuple(row.values()) for name, row in facts["packages"].items()}
    assert rows == {
        "cuda-drivers": (None, "half-installed", False),
        "dkms": ("3.2.2-1", "installed", False),
        "libnvidia-ml1": ("550.163.01-2", "installed", False),
        "libnvidia-ml1:i386": ("550.163.01-1", "installed", False),
        "linux-image-amd64": ("6.12.43-1", "installed", False),
        "nvidia-open-kernel-dkms": ("550.163.01-2", "half-configured", False),
        "nvidia-persistenced": ("550.163.01-1", "config-files", False),
        "nvidia-smi": ("550.163.01-2", "installed", True),
    }


def test_what_an_interrupted_dpkg_did_last(machine: Any) -> None:
    machine.write("var/lib/dpkg/status", STATUS)
    machine.write(
        "var/lib/dpkg/updates/0001",
        "Package: nvidia-smi\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 580.95.05-1\n",
    )
    machine.write("var/lib/dpkg/updates/tmp.i", "Package: nvidia-smi\nStatus: install ok installed\n")
    machine.write("var/lib/dpkg/updates/0002", "Package: dkms\nStatus: deinstall ok not-installed\n")
    found = machine.facts()["packages"]
    assert found["nvidia-smi"] == {"version": "580.95.05-1", "state": "unpacked", "held": False}
    assert "dkms" not in found
