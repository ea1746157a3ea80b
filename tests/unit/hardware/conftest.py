# SPDX-License-Identifier: Apache-2.0
"""Small machines, written by hand as the files that the kernel and the tools would show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import documented_facts
import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware.collect import collect
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import settings

# Examples are judged by their result; a busy machine is no failure.
settings.register_profile("fleet", deadline=None)
settings.load_profile("fleet")

RECORDED = Path(__file__).resolve().parents[3] / ".." / "shared" / "hardware"


class Machine:
    """A root directory that files, links and GPUs are put into."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> Path:
        """Write a file below the root."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link below the root."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def gpu(
        self,
        address: str,
        vendor: int,
        device: int = 0x2204,
        pci_class: int = 0x0302,
        *,
        driver: str | None = None,
        numa: int = 0,
        render: int | None = None,
        files: dict[str, Any] | None = None,
    ) -> str:
        """Put a PCI device on the bus and return its folder."""
        folder = f"sys/bus/pci/devices/{address}"
        self.write(f"{folder}/vendor", f"0x{vendor:04x}\n")
        self.write(f"{folder}/device", f"0x{device:04x}\n")
        self.write(f"{folder}/class", f"0x{pci_class:04x}00\n")
        self.write(f"{folder}/numa_node", f"{numa}\n")
        if driver:
            self.link(f"{folder}/driver", f"../../../../bus/pci/drivers/{driver}")
        if render is not None:
            (self.root / folder / "drm" / f"renderD{render}").mkdir(parents=True)
        for name, text in (files or {}).items():
            self.write(f"{folder}/{name}", f"{text}\n")
        return folder

    def kfd_node(
        self, number: int, bank_bytes: int = 0, links: tuple[tuple[int, int], ...] = (), **properties: int
    ) -> None:
        """Add a node to the compute topology; `links` are (type, node_to)."""
        folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
        self.write(f"{folder}/properties", "".join(f"{key} {value}\n" for key, value in properties.items()))
        self.write(f"{folder}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {bank_bytes}\n")
        for index, (kind, peer) in enumerate(links):
            self.write(f"{folder}/io_links/{index}/properties", f"type {kind}\nnode_from {number}\nnode_to {peer}\n")

    def nvidia_driver(self, version: str = "570.124.06", library: str | None = None, flavour: str = "open") -> None:
        """Load NVIDIA's kernel module, and install its library."""
        module = {"open": "UNIX Open Kernel Module for x86_64", "proprietary": "UNIX x86_64 Kernel Module"}[flavour]
        self.write("proc/driver/nvidia/version", f"NVRM version: NVIDIA {module}  {version}  Release Build\n")
        self.write(f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{library or version}", "")
        self.link("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", f"libnvidia-ml.so.{library or version}")

    def facts(
        self,
        *,
        live: bool = False,
        timeout: float = 10,
        wake: bool = False,
        integrated: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Return the facts of this machine, which survive JSON and are as the module documents them."""
        host = Host(str(self.root), timeout, live=live, wake=wake, integrated=integrated)
        found = json.loads(json.dumps(collect(host, **options)))
        documented_facts.check(found)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An empty machine with 64 GiB of memory."""
    found = Machine(tmp_path / "root")
    found.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   50331648 kB\n")
    return found


@pytest.fixture
def recorded() -> Path:
    """The folder of recorded hardware beside the project."""
    if not RECORDED.is_dir():
        pytest.skip("no recorded hardware beside the project")
    return RECORDED
