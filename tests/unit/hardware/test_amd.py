# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import amd, amd_smi, drm, kfd, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import number
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import example, given, settings
from hypothesis import strategies as st

AMD = 0x1002
GIB, MIB = 1 << 30, 1 << 20
NODE = {"simd_count": 416, "simd_per_cu": 4, "vendor_id": AMD, "domain": 0}
PCI = "sys/bus/pci/devices"
MI210, MI300X, MI300A, PHOENIX = 0x740F, 0x74A1, 0x74A0, 0x15BF


class Look:
    """What the AMD side alone finds on a machine."""

    def __init__(self, root: Path, smi: Path | None = None, memory: int | None = 64 * GIB, **options: Any) -> None:
        self.host = Host(str(root), **options)
        self.devices = pci.collect(self.host).devices
        drm.collect(self.host, self.devices)
        pending = amd.start(self.host, self.devices, None if smi is None else str(smi))
        self.driver = amd.finish(pending, self.host, self.devices, memory)
        number(self.devices)
        # The facts are JSON.
        assert json.loads(json.dumps(self.devices, allow_nan=False)) == self.devices

    def status(self, probe: str) -> str:
        return str(self.host.report.probes[probe]["status"])

    def values(self, key: str) -> list[Any]:
        return [device[key] for device in self.devices]


def two_cards(machine: Any) -> None:
    for position, (address, location) in enumerate([("0000:63:00.0", 0x6300), ("0000:43:00.0", 0x4300)], 1):
        vram = {"mem_info_vram_total": 64 * GIB, "mem_info_vram_used": 10 * MIB, "product_name": "Instinct MI210"}
        machine.gpu(address, AMD, MI210, 0x0380, driver="amdgpu", render=127 + position, files=vram)
        machine.kfd_node(
            position,
            64 * GIB,
            ((2, 0), (11, 3 - position)),
            location_id=location,
            gfx_target_version=90010,
            unique_id=0x18FFFFFF00000000 + position,
            drm_render_minor=127 + position,
            hive_id=0xABCDEF,
            **NODE,
        )
    machine.kfd_node(0, 64 * GIB, cpu_cores_count=32, simd_count=0)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (90402, "gfx942"),
        (90010, "gfx90a"),
        (90012, "gfx90c"),
        (110500, "gfx1150"),
        (110003, "gfx1103"),
        (120001, "gfx1201"),
        (80003, "gfx803"),
        (0, None),
        (None, None),
        (99999, None),
        (10**9, None),
    ],
)
def test_gfx_target(target: int | None, name: str | None) -> None:
    assert kfd.gfx_target(target) == name


def test_two_linked_cards(machine: Any) -> None:
    two_cards(machine)
    machine.write("opt/rocm/.info/version", "6.4.1-83\n")
    machine.write("sys/module/amdgpu/version", "6.12.12\n")
    found = Look(machine.root)
    first = found.devices[0]
    assert found.values("pci_bus_id") == ["0000:43:00.0", "0000:63:00.0"]
    assert (first["architecture"], first["generation"], first["name"]) == ("gfx90a", "cdna2", "Instinct MI210")
    assert (first["memory_total_bytes"], first["memory_used_bytes"]) == (64 * GIB, 10 * MIB)
    assert (first["uuid"], first["render_node"]) == ("GPU-18ffffff00000002", "/dev/dri/renderD129")
    assert (first["compute_units"], first["hive_id"], first["partition"]) == (104, "0000000000abcdef", None)
    link = {"type": "xgmi", "peer_bus_id": "0000:63:00.0", "peer_type": "gpu", "count": 1, "weight": None}
    assert first["links"] == [link]
    assert found.values("usable") == [True, True] and found.values("health") == ["ok", "ok"]
    assert found.driver == {"version": "6.12.12", "rocm_version": "6.4.1"}
    assert (found.status("kfd"), found.status("amdgpu"), found.host.report.errors) == ("ok", "ok", [])


def test_facts_of_two_cards(machine: Any) -> None:
    two_cards(machine)
    machine.gpu("0000:01:00.0", 0x10DE, driver="nouveau")
    facts = machine.facts()
    assert (facts["tier"], facts["vendor"], facts["vendors"]) == ("rocm", "amd", ["nvidia", "amd"])
    assert [device["index"] for device in facts["devices"]] == [0, 0, 1]


def test_nothing_is_started_without_an_amd_device(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpu("0000:01:00.0", 0x10DE, driver="nvidia")
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a child was started"))
    found = Look(machine.root)
    assert found.values("vendor") == ["nvidia"]
    assert {found.status(probe) for probe in ("kfd", "amdgpu", "amd_smi", "rocm_smi")} == {"absent"}


# Drivers and health


@pytest.mark.parametrize(
    ("driver", "reason"),
    [(None, "no driver is bound"), ("radeon", "bound to radeon"), ("vfio-pci", "bound to vfio-pci")],
)
def test_other_drivers(machine: Any, driver: str | None, reason: str) -> None:
    machine.gpu("0000:01:00.0", AMD, 0x6818, 0x0300, driver=driver, files={"mem_info_vram_total": GIB})
    (device,) = Look(machine.root).devices
    assert (device["usable"], device["unusable_reason"], device["health"]) == (False, reason, None)
    assert (device["architecture"], device["memory_total_bytes"]) == ("gfx601", None)


def test_partial_recording_is_usable(machine: Any) -> None:
    uevent = "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:731F\nPCI_SLOT_NAME=0000:28:00.0\n"
    machine.write("sys/class/drm/card1/device/uevent", uevent)
    (device,) = Look(machine.root).devices
    assert (device["usable"], device["architecture"], device["health"]) == (True, "gfx1010", None)
    assert device["memory_total_bytes"] is None and device["render_node"] is None


def test_a_card_that_hangs_hides_no_other(machine: Any) -> None:
    for bus in ("03", "04"):
        machine.gpu(f"0000:{bus}:00.0", AMD, 0x744C, 0x0300, driver="amdgpu", files={"mem_info_vram_used": 5})
    machine.write(f"{PCI}/0000:04:00.0/mem_info_vram_total", str(24 * GIB))
    # Nobody writes into this pipe: opening it never returns, as a read of a hung GPU.
    os.mkfifo(machine.root / PCI / "0000:03:00.0/mem_info_vram_total")
    started = time.monotonic()
    found = Look(machine.root, timeout=1.5)
    assert time.monotonic() - started < 5
    stuck, healthy = found.devices
    assert stuck["unusable_reason"].startswith("amdgpu did not answer within 1.") and stuck["health"] == "error"
    assert (stuck["architecture"], stuck["pci"]["device_id"]) == ("gfx1100", "744c")
    assert (healthy["usable"], healthy["memory_total_bytes"]) == (True, 24 * GIB)
    assert found.status("amdgpu") == "timeout"
    assert any(error["message"].startswith("0000:03:00.0: ") for error in found.host.report.errors)


def test_kfd_that_hangs(machine: Any) -> None:
    machine.gpu("0000:03:00.0", AMD, 0x744C, 0x0300, driver="amdgpu", files={"mem_info_vram_total": 24 * GIB})
    folder = machine.root / kfd.NODES / "1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "properties")
    found = Look(machine.root, timeout=1)
    assert found.status("kfd") == "timeout"
    (device,) = found.devices
    assert device["memory_total_bytes"] == 24 * GIB
    assert device["unusable_reason"].startswith("kfd did not answer within ")


def test_no_process_to_ask_with(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    two_cards(machine)

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    found = Look(machine.root)
    assert found.values("unusable_reason") == ["no process could be started to ask amdgpu"] * 2
    assert {error["source"] for error in found.host.report.errors} == {"kfd", "amdgpu"}


def test_attributes_that_fail(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    two_cards(machine)

    def fail(*_arguments: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(amd, "read_attributes", fail)
    found = Look(machine.root)
    assert found.values("unusable_reason") == ["amdgpu could not be read: MemoryError: no room"] * 2
    # What kfd tells is there all the same.
    assert (found.values("architecture"), found.status("amdgpu")) == (["gfx90a"] * 2, "error")


def test_unreadable_attribute(machine: Any) -> None:
    machine.gpu("0000:03:00.0", AMD, 0x744C, 0x0300, driver="amdgpu")
    # A directory can be read as a file by nobody, not even by root.
    (machine.root / PCI / "0000:03:00.0/mem_info_vram_total").mkdir()
    found = Look(machine.root)
    assert found.values("unusable_reason") == ["amdgpu does not let mem_info_vram_total be read"]
    assert found.values("health") == ["error"] and found.status("amdgpu") == "error"


# What amdgpu shows


FULL = {
    "mem_info_vram_total": 16 * GIB,
    "mem_info_vram_used": MIB,
    "mem_info_vis_vram_total": 256 * MIB,
    "mem_info_gtt_total": 32 * GIB,
    "mem_info_vram_vendor": "samsung",
    "unique_id": "946d7e1ef9b172dd",
    "hwmon/hwmon3/power1_cap": 289500000,
    "hwmon/hwmon3/power1_cap_default": 289000000,
    "hwmon/hwmon3/power1_cap_min": 0,
    "hwmon/hwmon3/power1_cap_max": 332000000,
    "ras/features": "feature mask: 0x5",
    "ras/umc_err_count": "ue: 2\nce: 7",
}


def test_attributes(machine: Any) -> None:
    machine.gpu("0000:0c:00.0", AMD, 0x73BF, 0x0300, driver="amdgpu", files=FULL)
    (device,) = Look(machine.root).devices
    assert (device["memory_total_bytes"], device["memory_bar_bytes"]) == (16 * GIB, 256 * MIB)
    assert (device["memory_used_bytes"], device["gtt_bytes"]) == (MIB, None)
    assert device["uuid"] == "GPU-946d7e1ef9b172dd"
    assert device["power"] == {
        "limit_watts": 289.5,
        "default_limit_watts": 289,
        "min_limit_watts": 0,
        "max_limit_watts": 332,
    }
    assert (device["ecc"]["mode"], device["ecc"]["uncorrected"]) == (True, 2)
    assert (device["integrated"], device["unified_memory"], device["virtualization"]) == (False, False, None)


def test_a_sleeping_card_is_not_woken(machine: Any) -> None:
    files = {**FULL, "power/runtime_status": "suspended", "current_compute_partition": "SPX"}
    folder = machine.gpu("0000:0c:00.0", AMD, 0x73BF, 0x0300, driver="amdgpu", files=files)
    for name in ("ras/features", "hwmon/hwmon3/power1_cap", "current_compute_partition"):
        # Reading this would block until the deadline.
        (machine.root / folder / name).unlink()
        os.mkfifo(machine.root / folder / name)
    (device,) = Look(machine.root, timeout=5).devices
    assert (device["usable"], device["power_state"], device["memory_total_bytes"]) == (True, "suspended", 16 * GIB)
    assert set(device["power"].values()) == {None} and device["ecc"]["mode"] is None


def test_wake_asks_a_sleeping_card(machine: Any) -> None:
    files = {**FULL, "power/runtime_status": "suspended"}
    machine.gpu("0000:0c:00.0", AMD, 0x73BF, 0x0300, driver="amdgpu", files=files)
    (device,) = Look(machine.root, wake=True).devices
    assert device["power"]["limit_watts"] == 289.5


@pytest.mark.parametrize(
    ("version", "target"),
    [
        ((9, 4, 3), "gfx942"),
        ((10, 1, 10), "gfx1010"),
        ((10, 1, 1), "gfx1012"),
        ((11, 0, 1), "gfx1103"),
        ((11, 5, 1), "gfx1151"),
        ((12, 0, 1), "gfx1201"),
        ((13, 0, 2), "gfx1302"),
        ((11, 0, 99), None),
        ((12, -1, 0), None),
        ((12, 0, 77), None),
    ],
)
def test_target_by_the_graphics_core(machine: Any, version: tuple[int, int, int], target: str | None) -> None:
    files = {
        f"{amd.GRAPHICS_CORE}/{part}": value
        for part, value in zip(("major", "minor", "revision"), version, strict=True)
    }
    # An id that no table has
    machine.gpu("0000:03:00.0", AMD, 0xFFF0, 0x0300, driver="amdgpu", files=files)
    assert Look(machine.root).values("architecture") == [target]


def test_generation_by_the_target(machine: Any) -> None:
    for position, target in enumerate((90010, 90402, 90006, 110501, 990000)):
        machine.kfd_node(position, GIB, location_id=0x100 * position, gfx_target_version=target, device_id=1, **NODE)
    assert Look(machine.root).values("generation") == ["cdna2", "cdna3", "gcn5", "rdna3.5", None]


@pytest.mark.parametrize(
    ("device", "vbios", "expected"),
    [(0x74B5, "", "sriov_vf"), (MI300X, "113-MI3SRIOV-001", "sriov_vf"), (MI300X, "113-M3000100-102", None)],
)
def test_virtual_function(machine: Any, device: int, vbios: str, expected: str | None) -> None:
    machine.gpu("0000:05:00.0", AMD, device, 0x1200, driver="amdgpu", files={"vbios_version": vbios})
    (found,) = Look(machine.root).devices
    assert (found["virtualization"], found["architecture"], found["usable"]) == (expected, "gfx942", True)


def test_newest_rocm_beside_no_default(machine: Any) -> None:
    machine.write("opt/rocm-6.2.4/.info/version", "6.2.4-139")
    machine.write("opt/rocm-6.10.0/.info/version", "6.10.0-1")
    machine.write("opt/rocm-7/.info/version", "none")
    assert Look(machine.root).driver["rocm_version"] == "6.10.0"


# APUs


def phoenix(machine: Any, vram: int = 4 * GIB, gtt: int = 30 * GIB) -> None:
    files = {
        "mem_info_vram_total": vram,
        "mem_info_vram_used": 1,
        "mem_info_gtt_total": gtt,
        "mem_info_gtt_used": 2,
        "unique_id": "",
    }
    machine.gpu("0000:64:00.0", AMD, PHOENIX, 0x0300, driver="amdgpu", render=128, numa=-1, files=files)
    machine.kfd_node(1, gtt, location_id=0x6400, gfx_target_version=110003, unique_id=0, **NODE)


def test_apu_is_listed_and_unusable(machine: Any) -> None:
    phoenix(machine)
    (device,) = Look(machine.root).devices
    assert device["integrated"] and device["unified_memory"] and not device["usable"]
    assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (30 * GIB, 2)
    assert (device["carve_out_bytes"], device["gtt_bytes"]) == (4 * GIB, 30 * GIB)
    assert (device["numa_node"], device["uuid"], device["health"]) == (None, None, "ok")
    assert device["unusable_reason"].endswith("inference_integrated_gpus: true lets it be used")


def test_apu_is_usable_when_wanted(machine: Any) -> None:
    phoenix(machine)
    (device,) = Look(machine.root, integrated=True).devices
    assert (device["usable"], device["unusable_reason"], device["integrated"]) == (True, None, True)


def test_large_carve_out(machine: Any) -> None:
    phoenix(machine, vram=96 * GIB, gtt=16 * GIB)
    (device,) = Look(machine.root, memory=128 * GIB).devices
    assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (96 * GIB, 1)


def test_apu_has_no_more_than_the_host(machine: Any) -> None:
    phoenix(machine, gtt=512 * GIB)
    assert Look(machine.root, memory=64 * GIB).values("memory_total_bytes") == [64 * GIB]
    assert Look(machine.root, memory=None).values("memory_total_bytes") == [512 * GIB]


@pytest.mark.parametrize(
    ("files", "integrated"),
    [
        ({"mem_info_vram_total": GIB // 2, "mem_info_gtt_total": 16 * GIB}, True),
        ({"mem_info_vram_total": GIB // 2, "mem_info_gtt_total": 16 * GIB, "mem_info_vram_vendor": "hynix"}, False),
        ({"mem_info_vram_total": 8 * GIB, "mem_info_gtt_total": 64 * GIB}, False),
        ({"mem_info_gtt_total": 64 * GIB}, False),
    ],
)
def test_unknown_chip_is_an_apu_by_its_memory(machine: Any, files: dict[str, Any], integrated: bool) -> None:
    machine.gpu("0000:64:00.0", AMD, 0xFFF0, 0x0300, driver="amdgpu", files=files)
    assert Look(machine.root).values("integrated") == [integrated]


def test_node_that_is_processor_and_gpu(machine: Any) -> None:
    node = {**NODE, "cpu_cores_count": 4}
    machine.kfd_node(0, 8 * GIB, location_id=0x10, gfx_target_version=70000, device_id=0xFFF0, **node)
    (device,) = Look(machine.root).devices
    assert (device["integrated"], device["pci_bus_id"]) == (True, "0000:00:02.0")


def test_mi300a_is_usable(machine: Any) -> None:
    files = {"mem_info_vram_total": 0, "mem_info_gtt_total": 502 * GIB}
    machine.gpu("0000:01:00.0", AMD, MI300A, 0x1200, driver="amdgpu", files=files)
    machine.kfd_node(4, 125 * GIB, location_id=0x100, gfx_target_version=90402, unique_id=9, device_id=MI300A, **NODE)
    (device,) = Look(machine.root, memory=512 * GIB).devices
    assert device["usable"] and device["unified_memory"] and not device["integrated"]
    assert (device["memory_total_bytes"], device["generation"]) == (125 * GIB, "cdna3")


# kfd


def partitions(machine: Any, count: int, bank: int, function: int = 1, high: int = 0) -> None:
    for position in range(count):
        machine.kfd_node(
            position + 1,
            bank,
            tuple((11, peer + 1) for peer in range(count) if peer != position),
            location_id=0x0500 + position * function + (position << 28) * high,
            gfx_target_version=90402,
            drm_render_minor=128 + position,
            unique_id=7,
            **{**NODE, "simd_count": 152},
        )


@pytest.mark.parametrize(("function", "high"), [(1, 0), (0, 1)])
def test_partitions_are_one_card(machine: Any, function: int, high: int) -> None:
    files = {
        "mem_info_vram_total": 192 * GIB,
        "current_compute_partition": "CPX",
        "current_memory_partition": "NPS4",
    }
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu", render=128, files=files)
    partitions(machine, 4, 48 * GIB, function, high)
    (device,) = Look(machine.root).devices
    partition = device["partition"]
    assert (partition["compute"], partition["memory"], partition["count"]) == ("CPX", "NPS4", 4)
    assert partition["instances"][3] == {
        "kfd_node": 4,
        "architecture": "gfx942",
        "render_node": "/dev/dri/renderD131",
        "memory_total_bytes": 48 * GIB,
    }
    assert (device["memory_total_bytes"], device["compute_units"], device["links"]) == (192 * GIB, 152, [])


def test_partitions_that_each_show_the_whole_card(machine: Any) -> None:
    files = {"mem_info_vram_total": 192 * GIB, "current_compute_partition": "DPX", "current_memory_partition": "NPS1"}
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu", files=files)
    partitions(machine, 2, 192 * GIB)
    (device,) = Look(machine.root).devices
    assert device["memory_total_bytes"] == 192 * GIB
    assert [part["memory_total_bytes"] for part in device["partition"]["instances"]] == [96 * GIB, 96 * GIB]


def test_partitions_without_pci(machine: Any) -> None:
    partitions(machine, 3, 64 * GIB)
    (device,) = Look(machine.root).devices
    assert (device["memory_total_bytes"], device["partition"]["count"]) == (192 * GIB, 3)
    assert (device["usable"], device["kfd"], device["pci_bus_id"]) == (True, True, "0000:05:00.0")


def test_undivided_card_is_not_partitioned(machine: Any) -> None:
    files = {"current_compute_partition": "SPX", "current_memory_partition": "NPS1"}
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu", files=files)
    partitions(machine, 1, 192 * GIB)
    assert Look(machine.root).values("partition") == [None]


def test_divided_card_without_kfd(machine: Any) -> None:
    files = {"current_compute_partition": "CPX\n", "current_memory_partition": "garbage"}
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu", files=files)
    assert Look(machine.root).values("partition") == [
        {"compute": "CPX", "memory": None, "count": None, "instances": []}
    ]


def test_virtual_functions_are_cards_of_their_own(machine: Any) -> None:
    for function in range(3):
        machine.gpu(f"0000:05:00.{function}", AMD, 0x74B5, 0x1200, driver="amdgpu")
        machine.kfd_node(function, 8 * GIB, location_id=0x500 + function, gfx_target_version=90402, **NODE)
    found = Look(machine.root)
    assert found.values("memory_total_bytes") == [8 * GIB] * 3
    assert found.values("partition") == [None] * 3


def test_node_of_another_vendor_or_without_simds_is_no_card(machine: Any) -> None:
    machine.kfd_node(0, GIB, simd_count=0, vendor_id=AMD)
    machine.kfd_node(1, GIB, **{**NODE, "vendor_id": 0x10DE})
    machine.write(f"{kfd.NODES}/not-a-number/properties", "simd_count 4\nvendor_id 4098\n")
    found = Look(machine.root)
    assert found.devices == [] and found.status("kfd") == "absent"


def links(machine: Any, number: int, peers: dict[int, str]) -> None:
    for index, (peer, rest) in enumerate(peers.items()):
        text = f"type 11\nnode_from {number}\nnode_to {peer}\n{rest}"
        machine.write(f"{kfd.NODES}/{number}/io_links/{index}/properties", text)


def test_weights_and_counts_of_links(machine: Any) -> None:
    for position in range(1, 4):
        machine.kfd_node(position, GIB, location_id=0x100 * position, gfx_target_version=90010, **NODE)
    links(machine, 1, {2: "weight 15\nmin_bandwidth 50000\nmax_bandwidth 200000\n", 3: "weight 30\n", 9: "weight 15\n"})
    # Node 2 tells nothing of the link to node 1, node 3 something else.
    links(machine, 3, {1: "weight 15\nmin_bandwidth 0\nmax_bandwidth 0\n"})
    first, second, third = Look(machine.root).devices
    assert [(link["peer_bus_id"], link["count"], link["weight"]) for link in first["links"]] == [
        ("0000:02:00.0", 4, 15),
        ("0000:03:00.0", 1, 30),
    ]
    assert [(link["peer_bus_id"], link["count"], link["weight"]) for link in second["links"]] == [
        ("0000:01:00.0", 4, 15)
    ]
    assert [(link["peer_bus_id"], link["weight"]) for link in third["links"]] == [("0000:01:00.0", 15)]


def test_memory_of_an_old_kernel_and_in_use(machine: Any) -> None:
    machine.kfd_node(1, 0, location_id=0x100, local_mem_size=16 * GIB, **NODE)
    machine.kfd_node(2, 32 * GIB, location_id=0x200, **NODE)
    machine.write(f"{kfd.NODES}/2/mem_banks/0/used_memory", str(3 * GIB))
    found = Look(machine.root)
    assert found.values("memory_total_bytes") == [16 * GIB, 32 * GIB]
    assert found.values("memory_used_bytes") == [None, 3 * GIB]


def test_order_is_that_of_the_bus(machine: Any) -> None:
    for position, bus in enumerate((0x9000, 0x0500, 0x1500)):
        machine.kfd_node(position, GIB, location_id=bus, **NODE)
    machine.kfd_node(3, GIB, location_id=0x0100, **{**NODE, "domain": 1})
    expected = ["0000:05:00.0", "0000:15:00.0", "0000:90:00.0", "0001:01:00.0"]
    assert Look(machine.root).values("pci_bus_id") == expected


# amd-smi and rocm-smi

MARKETED = {
    "gpu": 0,
    "asic": {
        "market_name": "AMD Instinct MI300X",
        "device_id": "0x74a1",
        "asic_serial": "0xE3AA140F9A5F9E31",
        "target_graphics_version": "gfx942",
        "num_compute_units": 304,
    },
    "bus": {"bdf": "0000:05:00.0", "max_pcie_width": 16, "pcie_interface_version": "Gen 5"},
    "vram": {"size": {"value": 196592, "unit": "MB"}},
    "limit": {
        "max_power": {"value": 750, "unit": "W"},
        "min_power": "N/A",
        "socket_power": {"value": 700, "unit": "W"},
    },
    "driver": {"name": "amdgpu", "version": "6.10.5"},
    "numa": {"node": 0, "affinity": "N/A"},
    "partition": {"compute_partition": "SPX", "memory_partition": "NPS1"},
}


@pytest.mark.parametrize("content", [[MARKETED], {"gpu_data": [MARKETED]}])
def test_amd_smi_alone(machine: Any, content: Any) -> None:
    path = machine.write("smi.json", json.dumps(content))
    found = Look(machine.root, path)
    (device,) = found.devices
    assert (device["vendor"], device["name"], device["architecture"]) == ("amd", "AMD Instinct MI300X", "gfx942")
    assert (device["memory_total_bytes"], device["usable"], device["kfd"]) == (196592 * MIB, True, True)
    assert (device["uuid"], device["numa_node"], device["partition"]) == ("GPU-e3aa140f9a5f9e31", 0, None)
    assert (device["power"]["limit_watts"], device["power"]["max_limit_watts"]) == (700, 750)
    assert device["power"]["min_limit_watts"] is None
    assert (device["pcie"]["generation_max"], device["pcie"]["width_max"]) == (5, 16)
    assert (found.driver["version"], found.status("amd_smi"), found.status("rocm_smi")) == ("6.10.5", "ok", "absent")


def test_amd_smi_beside_the_kernel(machine: Any) -> None:
    files = {"mem_info_vram_total": 191 * GIB}
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu", render=128, files=files)
    path = machine.write("smi.json", json.dumps([MARKETED]))
    (device,) = Look(machine.root, path).devices
    # The kernel is right, the tool fills in.
    assert (device["name"], device["memory_total_bytes"]) == ("AMD Instinct MI300X", 191 * GIB)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"value": 65520, "unit": "MB"}, 65520 * MIB),
        ({"value": "64", "unit": "GB"}, 64 * GIB),
        ({"value": "N/A", "unit": "MB"}, None),
        ({"value": 1, "unit": "furlong"}, None),
        ("64 GB", 64 * GIB),
        (65520, 65520 * MIB),
        ("N/A", None),
        (-5, None),
        (True, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**40, None),
        ([1], None),
    ],
)
def test_sizes_of_amd_smi(size: Any, expected: int | None) -> None:
    _, (device,), _ = amd_smi.parse(json.dumps([{"vram": {"size": size}}]))
    assert device["memory_total_bytes"] == expected


def test_partitions_of_amd_smi(machine: Any) -> None:
    content = [
        {**MARKETED, "gpu": part, "bus": {"bdf": f"0000:05:00.{part}"}, "partition": {"accelerator_partition": "CPX"}}
        for part in range(4)
    ]
    for part in content:
        part["asic"] = {**MARKETED["asic"], "num_compute_units": 76}  # type: ignore[dict-item]
    (device,) = Look(machine.root, machine.write("smi.json", json.dumps(content))).devices
    assert (device["partition"]["count"], device["partition"]["compute"]) == (4, "CPX")
    # Each says that it has the memory of the whole card.
    assert (device["memory_total_bytes"], device["compute_units"]) == (196592 * MIB, 304)


def test_kernel_banner_is_no_version() -> None:
    content = [{**MARKETED, "driver": {"name": "amdgpu", "version": "Linuxversion6.14.0-24-generic(buildd@host)"}}]
    assert amd_smi.parse(json.dumps(content))[2] is None


WARNING = "WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status\n\n"
OLD_CARD = {
    "GPU ID": "0x738c",
    "Unique ID": "0x4edfb117a17a07d",
    "Max Graphics Package Power (W)": "290.0",
    "PCI Bus": "0000:A3:00.0",
    "VRAM Total Memory (B)": "34342961152",
    "VRAM Total Used Memory (B)": "6750208",
    "VIS_VRAM Total Memory (B)": "268435456",
    "Card series": "Arcturus GL-XL [Instinct MI100]",
    "Card model": "0x0c34",
    "(Topology) Numa Node": "1",
}
NEW_CARD = {
    "Device Name": "AMD Radeon RX 7900 XT",
    "Device ID": "0x744c",
    "Device Rev": "0xcc",
    "Subsystem ID": "0x471e",
    "GUID": "26967",
    "Card Series": "0x744c",
    "Card Model": "0x744c",
    "GFX Version": "gfx1100",
    "VRAM Total Memory (B)": "21458059264",
}


def test_old_rocm_smi(machine: Any) -> None:
    content = {"card0": OLD_CARD, "system": {"Driver version": "6.2.4"}}
    found = Look(machine.root, machine.write("smi.json", WARNING + json.dumps(content, indent=4)))
    (device,) = found.devices
    assert (device["pci_bus_id"], device["name"]) == ("0000:a3:00.0", "Arcturus GL-XL [Instinct MI100]")
    assert (device["architecture"], device["uuid"]) == ("gfx908", "GPU-04edfb117a17a07d")
    assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (34342961152, 6750208)
    assert (device["memory_bar_bytes"], device["numa_node"]) == (256 * MIB, 1)
    assert (device["power"]["limit_watts"], device["usable"]) == (290, True)
    assert (device["pci"]["device_id"], device["pci"]["subsystem_device_id"]) == ("738c", "0c34")
    assert (found.driver["version"], found.status("rocm_smi"), found.status("amd_smi")) == ("6.2.4", "ok", "absent")


def test_new_rocm_smi(machine: Any) -> None:
    (device,) = Look(machine.root, machine.write("smi.json", json.dumps({"card0": NEW_CARD}))).devices
    assert (device["pci_bus_id"], device["name"]) == (None, "AMD Radeon RX 7900 XT")
    assert (device["pci"]["device_id"], device["pci"]["revision"]) == ("744c", "cc")
    assert (device["pci"]["subsystem_device_id"], device["architecture"]) == ("471e", "gfx1100")
    assert (device["memory_total_bytes"], device["usable"]) == (21458059264, True)


@pytest.mark.parametrize(
    ("printed", "target"),
    [
        ("gfx9010", "gfx90a"),
        ("gfx9012", "gfx90c"),
        ("gfx942", "gfx942"),
        ("GFX1030", "gfx1030"),
        ("gfx1010", "gfx1010"),
        ("N/A", None),
        ("gfx", None),
        ("gfx94xyz", None),
    ],
)
def test_targets_of_rocm_smi(printed: str, target: str | None) -> None:
    _, (device,), _ = amd_smi.parse(json.dumps({"card0": {"GFX Version": printed}}))
    assert device["architecture"] == target


def placed(machine: Any, *cards: dict[str, Any]) -> Look:
    """Two cards on the bus, and rocm-smi's document of `cards`."""
    for bus in ("43", "63"):
        machine.gpu(f"0000:{bus}:00.0", AMD, 0x744C, 0x0300, driver="amdgpu", files={"unique_id": f"{bus:0>16}"})
    content = {f"card{index}": card for index, card in enumerate(cards)}
    return Look(machine.root, machine.write("smi.json", json.dumps(content)))


def test_cards_without_an_address_are_in_the_order_of_the_bus(machine: Any) -> None:
    found = placed(machine, {**NEW_CARD, "Device Name": "first"}, {**NEW_CARD, "Device Name": "second"})
    assert list(zip(found.values("pci_bus_id"), found.values("name"), strict=True)) == [
        ("0000:43:00.0", "first"),
        ("0000:63:00.0", "second"),
    ]
    assert found.host.report.errors == []


def test_cards_without_an_address_are_found_by_their_id(machine: Any) -> None:
    found = placed(machine, {**NEW_CARD, "Unique ID": "0x63"})
    assert found.values("name") == [None, "AMD Radeon RX 7900 XT"]


@pytest.mark.parametrize("cards", [[NEW_CARD], [NEW_CARD, {**NEW_CARD, "Device ID": "0x73bf"}], [NEW_CARD] * 3])
def test_cards_that_may_be_any_are_left_out(machine: Any, cards: list[dict[str, Any]]) -> None:
    found = placed(machine, *cards)
    assert found.values("name") == [None, None]
    assert [error["source"] for error in found.host.report.errors] == ["rocm_smi"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No JSON data to report",
        WARNING,
        "{}",
        "[]",
        "[1, 2]",
        '{"card0": 5}',
        "{" * 30000,
        "[" * 30000,
        "\0",
        "null",
    ],
)
def test_no_document(machine: Any, text: str) -> None:
    found = Look(machine.root, machine.write("smi.json", text))
    assert (found.devices, found.status("amd_smi")) == ([], "error")
    assert [error["source"] for error in found.host.report.errors] == ["amd_smi"]


@pytest.mark.parametrize("path", ["missing.json", ".", "\0"])
def test_no_file(machine: Any, path: str) -> None:
    found = Look(machine.root, machine.root / path)
    assert found.status("amd_smi") == "error"


def stand_in(folder: Path, name: str, output: str, status: int = 0) -> None:
    """Put a stand-in of a tool on the PATH that prints `output` and notes that it ran."""
    program = folder / name
    (folder / f"{name}.out").write_text(output)
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {folder}/ran\ncat {folder}/{name}.out\nexit {status}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH for stand-in tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_tool_is_asked_for_what_is_missing(machine: Any, tools: Path) -> None:
    machine.gpu("0000:05:00.0", AMD, MI300X, 0x1200, driver="amdgpu")
    stand_in(tools, "amd-smi", json.dumps([MARKETED]))
    found = Look(machine.root, live=True)
    assert found.values("name") == ["AMD Instinct MI300X"]
    assert found.values("memory_total_bytes") == [196592 * MIB]
    assert (tools / "ran").read_text().endswith("/amd-smi static --json\n")


def test_rocm_smi_where_amd_smi_fails(machine: Any, tools: Path) -> None:
    machine.gpu("0000:a3:00.0", AMD, 0x738C, 0x1200, driver="amdgpu")
    stand_in(tools, "amd-smi", "cannot open the library", 1)
    stand_in(tools, "rocm-smi", WARNING + json.dumps({"card0": OLD_CARD}))
    found = Look(machine.root, live=True)
    assert found.values("memory_total_bytes") == [34342961152]
    assert (found.status("amd_smi"), found.status("rocm_smi")) == ("error", "ok")


@pytest.mark.parametrize("state", ["active", "suspended"])
def test_no_tool_is_asked_when_nothing_is_missing_or_a_card_sleeps(machine: Any, tools: Path, state: str) -> None:
    files: dict[str, Any] = {"power/runtime_status": state}
    if state == "active":
        files["mem_info_vram_total"] = 24 * GIB
        machine.write("usr/share/misc/pci.ids", "1002  AMD\n\t744c  Navi 31\n")
    machine.gpu("0000:03:00.0", AMD, 0x744C, 0x0300, driver="amdgpu", files=files)
    stand_in(tools, "amd-smi", json.dumps([MARKETED]))
    found = Look(machine.root, live=True)
    assert not (tools / "ran").exists()
    assert (found.status("amd_smi"), len(found.devices)) == ("absent", 1)


# Garbage: facts or an entry in errors, never an exception

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("N/A"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS: list[Any] = [
    {"gpu_data": [MARKETED, {**MARKETED, "bus": {"bdf": "0000:06:00.0"}}]},
    [MARKETED],
    {"card0": OLD_CARD, "card1": NEW_CARD, "system": {"Driver version": "6.2.4"}},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, item in inner for place in places(item, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with something else in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def parsed(text: str) -> None:
    """Whatever `text` is: records that are JSON with sizes that make sense, or a ValueError."""
    try:
        _, devices, _ = amd_smi.parse(text)
    except ValueError:
        return
    json.dumps(devices, allow_nan=False)
    for device in devices:
        assert device["vendor"] == "amd" and device["name"] != ""
        size = device["memory_total_bytes"]
        assert size is None or (type(size) is int and 0 < size < 1 << 62)


@given(st.sampled_from(DOCUMENTS), st.data())
def test_any_value_in_any_place(document: Any, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places(document)))
    parsed(json.dumps(replaced(document, place, data.draw(JSON_VALUES))))


@given(st.sampled_from(DOCUMENTS), st.floats(0, 1), st.binary(max_size=4))
def test_truncated_or_corrupted_document(document: Any, share: float, noise: bytes) -> None:
    text = (WARNING + json.dumps(document, indent=1)).encode()
    cut = int(len(text) * share)
    parsed(text[:cut].decode())
    parsed((text[:cut] + noise + text[cut + len(noise) :]).decode("utf-8", "replace"))


GARBAGE = st.one_of(
    st.binary(max_size=24),
    st.integers(-(10**30), 10**30).map(lambda value: str(value).encode()),
    st.sampled_from([b"", b"\0\0\0", b"N/A", b"0x", b"1e9", b"-1", b"9" * 5000, "\u0661".encode(), b"CPX\0", b"NPS1"]),
)
ATTRIBUTES = [*FULL, "mem_info_gtt_used", "product_name", "current_compute_partition", "current_memory_partition"]
ATTRIBUTES += [f"{amd.GRAPHICS_CORE}/{part}" for part in ("major", "minor", "revision")]


@given(st.dictionaries(st.sampled_from(ATTRIBUTES), GARBAGE, max_size=8))
@example({"unique_id": b"9" * 5000})
def test_garbage_in_sysfs(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for name, content in files.items():
            place = Path(root) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        found = amd.read_attributes(Host(root), "", asleep=False)
    json.dumps(found, allow_nan=False)
    assert found["name"] != "" and found["vram_total"] != 0
    assert all(size is None or 0 <= size < 1 << 62 for size in (found["vram_total"], found["vram_used"]))


PROPERTY = st.sampled_from(
    [
        *("simd_count", "simd_per_cu", "vendor_id", "location_id", "domain", "unique_id", "gfx_target_version"),
        *("hive_id", "drm_render_minor", "device_id", "local_mem_size", "cpu_cores_count"),
        *("type", "node_to", "weight", "min_bandwidth", "max_bandwidth", "size_in_bytes"),
    ]
)
LINES = st.tuples(PROPERTY, st.one_of(st.integers(0, 20), st.just(AMD), st.integers(-1, 1 << 66)))
TEXTS = st.one_of(
    GARBAGE,
    st.lists(LINES, max_size=6).map(
        lambda lines: "".join(
            f"{key} {value}\n" for key, value in [("simd_count", 4), ("vendor_id", AMD), *lines]
        ).encode()
    ),
)


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.sampled_from(["", "io_links/0", "mem_banks/0"])), TEXTS))
def test_garbage_in_kfd(files: dict[tuple[int, str], bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for (node, part), content in files.items():
            folder = Path(root) / kfd.NODES / str(node) / part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "properties").write_bytes(content)
        records = kfd.collect(Host(root), ["0000:00:00.1"])
    json.dumps(records, allow_nan=False)
    known = {record["pci_bus_id"] for record in records}
    assert all(link["peer_bus_id"] in known for record in records for link in record["links"])
    sizes = [record["memory_total_bytes"] for record in records]
    assert all(size is None or 0 < size < 1 << 62 for size in sizes)


# Each example starts two processes.
@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(ATTRIBUTES), GARBAGE, max_size=5), TEXTS, st.sampled_from(DOCUMENTS))
def test_garbage_everywhere_is_judged(files: dict[str, bytes], properties: bytes, document: Any) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / PCI / "0000:05:00.0"
        files = {**files, "vendor": b"0x1002", "device": b"0x74a1", "class": b"0x120000", "uevent": b"DRIVER=amdgpu\n"}
        for name, content in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        node = Path(root) / kfd.NODES / "1"
        node.mkdir(parents=True)
        (node / "properties").write_bytes(properties)
        smi = Path(root) / "smi.json"
        smi.write_text(json.dumps(document))
        found = Look(Path(root), smi)
    assert found.devices
    assert all(device["usable"] == (device["unusable_reason"] is None) for device in found.devices)


# Recordings


def test_recorded_mi210(machine: Any, recorded: Path) -> None:
    machine.link("sys/class/kfd/kfd", str(recorded / "amd/kfd/mi210-8gpu-2hive/kfd"))
    found = Look(machine.root)
    assert found.values("usable") == [True] * 8
    assert set(found.values("architecture")) == {"gfx90a"}
    # The recording has no memory banks: unknown, not 0.
    assert set(found.values("memory_total_bytes")) == {None}
    assert {len(links) for links in found.values("links")} == {3}
    assert len(set(found.values("hive_id"))) == 2


def test_recorded_partitioned_mi300x(machine: Any, recorded: Path) -> None:
    machine.link("sys/class/kfd/kfd", str(recorded / "amd/kfd/mi300x-8gpu-cpx-63part/kfd"))
    found = Look(machine.root)
    assert [partition["count"] for partition in found.values("partition")] == [8] * 7 + [7]
    assert found.values("compute_units") == [304] * 7 + [266]


def test_recorded_phoenix(machine: Any, recorded: Path) -> None:
    tree = recorded / "amd/sysfs-lact/phoenix"
    machine.link("sys/class/kfd/kfd", str(tree / "kfd"))
    machine.link("sys/class/drm/card1", str(tree / "card1"))
    (device,) = Look(machine.root).devices
    assert (device["architecture"], device["integrated"], device["uuid"]) == ("gfx1103", True, None)
    assert (device["memory_total_bytes"], device["carve_out_bytes"]) == (31433977856, 4 * GIB)
