# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import amd

AMD, INTEL = 0x1002, 0x8086
GIB = 1 << 30
NODE = {"simd_count": 416, "vendor_id": AMD, "domain": 0}


@pytest.mark.parametrize(
    ("number", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (110500, "gfx1150"), (110003, "gfx1103"), (120001, "gfx1201"), (0, None)],
)
def test_gfx_target(number: int, name: str | None) -> None:
    assert amd.gfx_target(number) == name


def two_cards(machine: Any) -> None:
    for number, (address, location) in enumerate([("0000:63:00.0", 0x6300), ("0000:43:00.0", 0x4300)], 1):
        vram = {"mem_info_vram_total": 64 * GIB, "mem_info_vram_used": 10 << 20, "product_name": "Instinct MI210"}
        machine.gpu(address, AMD, 0x740F, 0x0380, driver="amdgpu", render=127 + number, files=vram)
        machine.kfd_node(
            number,
            64 * GIB,
            ((2, 0), (11, 3 - number)),
            location_id=location,
            gfx_target_version=90010,
            unique_id=0x18FFFFFF00000000 + number,
            drm_render_minor=127 + number,
            **NODE,
        )
    machine.kfd_node(0, 64 * GIB, cpu_cores_count=32, simd_count=0)


def test_rocm(machine: Any) -> None:
    two_cards(machine)
    machine.write("opt/rocm/.info/version", "6.4.1-83\n")
    facts = machine.facts()
    assert (facts["tier"], facts["vendor"], facts["usable_count"]) == ("rocm", "amd", 2)
    first = facts["devices"][0]
    assert (first["pci_bus_id"], first["architecture"], first["name"]) == ("0000:43:00.0", "gfx90a", "Instinct MI210")
    assert (first["memory_total_bytes"], first["memory_used_bytes"]) == (64 * GIB, 10 << 20)
    assert (first["uuid"], first["render_node"]) == ("GPU-18ffffff00000002", "/dev/dri/renderD129")
    assert first["links"] == [{"type": "xgmi", "peer_bus_id": "0000:63:00.0", "count": 1}]
    assert facts["driver"]["rocm_version"] == "6.4.1"
    assert facts["errors"] == []


def test_amdgpu_without_kfd_is_vulkan(machine: Any) -> None:
    files = {"mem_info_vram_total": 8 * GIB, "mem_info_vram_vendor": "samsung"}
    machine.gpu("0000:03:00.0", AMD, 0x73FF, 0x0300, driver="amdgpu", render=128, files=files)
    facts = machine.facts()
    assert (facts["tier"], facts["vendor"]) == ("vulkan", "amd")
    assert facts["devices"][0]["architecture"] is None


def test_apu_is_listed_and_unusable(machine: Any) -> None:
    files = {"mem_info_vram_total": 4 * GIB, "mem_info_gtt_total": 30 * GIB}
    machine.gpu("0000:64:00.0", AMD, 0x15BF, 0x0300, driver="amdgpu", render=128, numa=-1, files=files)
    machine.kfd_node(1, 30 * GIB, location_id=0x6400, gfx_target_version=110003, drm_render_minor=128, **NODE)
    facts = machine.facts()
    (device,) = facts["devices"]
    assert device["integrated"] and device["unified_memory"] and not device["usable"]
    assert (device["memory_total_bytes"], device["numa_node"]) == (30 * GIB, None)
    assert (facts["tier"], facts["vendor"], facts["vendors"]) == ("cpu", None, ["amd"])


def test_apu_without_kfd_is_known_by_its_memory(machine: Any) -> None:
    files = {"mem_info_vram_total": GIB // 2, "mem_info_gtt_total": 16 * GIB}
    machine.gpu("0000:64:00.0", AMD, driver="amdgpu", render=128, files=files)
    assert machine.facts()["devices"][0]["integrated"] is True


def test_partitions_are_one_card(machine: Any) -> None:
    files = {
        "mem_info_vram_total": 192 * GIB,
        "current_compute_partition": "CPX",
        "current_memory_partition": "NPS4",
    }
    machine.gpu("0000:05:00.0", AMD, 0x74A1, 0x1200, driver="amdgpu", render=128, files=files)
    for function in range(4):
        machine.kfd_node(
            function, 48 * GIB, location_id=0x0500 + function, gfx_target_version=90402, unique_id=7, **NODE
        )
    (device,) = machine.facts()["devices"]
    assert device["partition"] == {"compute": "CPX", "memory": "NPS4", "count": 4}
    assert (device["memory_total_bytes"], device["usable"]) == (192 * GIB, True)


def test_amd_smi_document(machine: Any) -> None:
    gpu = {
        "bus": {"bdf": "0000:05:00.0"},
        "asic": {"market_name": "AMD Instinct MI300X", "target_graphics_version": "gfx942"},
        "vram": {"size": {"value": 196592, "unit": "MB"}},
    }
    for content in ([gpu], {"gpu_data": [gpu]}):
        path = machine.write("smi.json", json.dumps(content))
        (record,) = amd.parse_static(path.read_text())
        assert (record["architecture"], record["memory_total_bytes"]) == ("gfx942", 196592 << 20)
    machine.gpu("0000:05:00.0", AMD, 0x74A1, 0x1200, driver="amdgpu", render=128)
    facts = machine.facts(amd_smi_json=str(path))
    assert [device["name"] for device in facts["devices"]] == ["AMD Instinct MI300X"]
    machine.write("smi.json", "No JSON data to report")
    assert machine.facts(amd_smi_json=str(path))["probes"]["amd_smi"]["status"] == "error"


@pytest.mark.parametrize(
    ("driver", "files"),
    [
        ("xe", {"tile0/physical_vram_size_bytes": 12 * GIB, "tile1/physical_vram_size_bytes": 12 * GIB}),
        ("i915", {"drm/card1/lmem_total_bytes": 24 * GIB}),
    ],
)
def test_intel(machine: Any, driver: str, files: dict[str, int]) -> None:
    machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver=driver, render=129, files=files)
    machine.gpu("0000:00:02.0", INTEL, 0x9B41, 0x0300, driver="i915", render=128)
    facts = machine.facts()
    integrated, discrete = facts["devices"]
    assert (discrete["memory_total_bytes"], discrete["usable"]) == (24 * GIB, True)
    assert integrated["integrated"] and not integrated["usable"]
    assert (facts["tier"], facts["vendor"], facts["usable_count"]) == ("vulkan", "intel", 1)


def test_what_is_no_gpu(machine: Any) -> None:
    machine.gpu("0000:01:00.0", 0x10DE, 0x1AF1, 0x0680)
    machine.gpu("0000:01:00.1", 0x10DE, 0x10F0, 0x0403)
    machine.gpu("0000:02:00.0", 0x1A03, 0x2000, 0x0300)
    machine.gpu("0000:00:0b.0", INTEL, 0x643E, 0x1200)
    folder = machine.gpu("0000:03:00.4", 0x10DE, 0x20B5, 0x0302, driver="nvidia")
    machine.link(f"{folder}/physfn", "../0000:03:00.0")
    facts = machine.facts()
    assert facts["devices"] == []
    assert (facts["tier"], facts["vendor"], facts["vendors"]) == ("cpu", None, [])


def test_tier_prefers_nvidia_then_amd(machine: Any) -> None:
    two_cards(machine)
    machine.gpu("0000:01:00.0", 0x10DE, driver="nouveau")
    facts = machine.facts()
    assert (facts["tier"], facts["vendors"]) == ("rocm", ["nvidia", "amd"])
    assert [device["index"] for device in facts["devices"]] == [0, 0, 1]


def test_recorded_mi210(machine: Any, recorded: Path) -> None:
    machine.link("sys/class/kfd/kfd", str(recorded / "amd/kfd/mi210-8gpu-2hive/kfd"))
    facts = machine.facts()
    assert (facts["tier"], facts["physical_count"], facts["usable_count"]) == ("rocm", 8, 8)
    assert {device["architecture"] for device in facts["devices"]} == {"gfx90a"}
    # The recording has no memory banks: unknown, not 0.
    assert {device["memory_total_bytes"] for device in facts["devices"]} == {None}
    assert {len(device["links"]) for device in facts["devices"]} == {3}


def test_recorded_partitioned_mi300x(machine: Any, recorded: Path) -> None:
    machine.link("sys/class/kfd/kfd", str(recorded / "amd/kfd/mi300x-8gpu-cpx-63part/kfd"))
    facts = machine.facts()
    assert facts["physical_count"] == 8
    assert sorted(device["partition"]["count"] for device in facts["devices"]) == [7, 8, 8, 8, 8, 8, 8, 8]


def test_recorded_phoenix(machine: Any, recorded: Path) -> None:
    tree = recorded / "amd/sysfs-lact/phoenix"
    machine.link("sys/class/kfd/kfd", str(tree / "kfd"))
    machine.link("sys/bus/pci/devices/0000:64:00.0", str(tree / "card1/device"))
    (device,) = machine.facts()["devices"]
    assert (device["architecture"], device["integrated"], device["uuid"]) == ("gfx1103", True, None)
    assert device["memory_total_bytes"] == 31433977856
