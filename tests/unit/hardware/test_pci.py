# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import drm, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

NVIDIA, AMD, INTEL = 0x10DE, 0x1002, 0x8086
UNKNOWN_LINK = {"generation_max": None, "generation_current": None, "width_max": None, "width_current": None}
# In the form of pci.ids: vendors, below them their devices, below these the boards.
PCI_IDS = """# a comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t2330  a device of another vendor
10de  NVIDIA Corporation
\t20b5  GA100 [A100 PCIe 80GB]
\t2330  GH100 [H100 SXM5 80GB]
\t\t10de 16c1  a board
# a comment between the devices
\t2331  GH100 [H100 PCIe]
8086  Intel Corporation
\t2339  not of NVIDIA
C 03  Display controller
\t2340  a class, no device
"""


def host_of(machine: Any) -> Host:
    return Host(str(machine.root))


def test_what_is_no_gpu(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, 0x1AF1, 0x0680)
    machine.gpu("0000:01:00.1", NVIDIA, 0x10F0, 0x0403)
    machine.gpu("0000:02:00.0", 0x1A03, 0x2000, 0x0300)
    machine.gpu("0000:02:01.0", 0x102B, 0x0536, 0x0300)
    machine.gpu("0000:02:02.0", 0x1013, 0x00B8, 0x0300)
    machine.gpu("0000:00:0b.0", INTEL, 0x643E, 0x1200)
    machine.write("sys/bus/pci/devices/no-address/vendor", "0x10de\n")
    assert pci.collect(host_of(machine)).devices == []
    assert pci.collect(host_of(machine)).nvswitches == 1


def test_without_a_bus_the_switches_are_unknown(machine: Any) -> None:
    assert pci.collect(host_of(machine)).devices == []
    assert pci.collect(host_of(machine)).nvswitches is None


def test_one_gpu(machine: Any) -> None:
    files = {
        "subsystem_vendor": "0x10de",
        "subsystem_device": "0x16c1",
        "revision": "0xa1",
        "local_cpulist": "0-15,32-47",
        "power/runtime_status": "active",
        "max_link_speed": "32.0 GT/s PCIe",
        "current_link_speed": "2.5 GT/s PCIe",
        "max_link_width": 16,
        "current_link_width": 8,
    }
    machine.gpu("0008:06:00.0", NVIDIA, 0x2330, 0x0302, driver="nvidia", numa=1, files=files)
    (device,) = pci.collect(host_of(machine)).devices
    assert device["pci"] == {
        "vendor_id": "10de",
        "device_id": "2330",
        "subsystem_vendor_id": "10de",
        "subsystem_device_id": "16c1",
        "class": "030200",
        "revision": "a1",
    }
    assert (device["vendor"], device["pci_bus_id"], device["driver_bound"]) == ("nvidia", "0008:06:00.0", "nvidia")
    assert (device["generation"], device["architecture"]) == ("hopper", None)
    assert (device["numa_node"], device["cpu_affinity"], device["power_state"]) == (1, "0-15,32-47", "active")
    assert device["pcie"] == {"generation_max": 5, "generation_current": 1, "width_max": 16, "width_current": 8}
    assert device["folder"] == "sys/bus/pci/devices/0008:06:00.0"


@pytest.mark.parametrize(("wake", "generation"), [(False, None), (True, 5)])
def test_the_link_of_a_sleeping_gpu_is_not_read(machine: Any, wake: bool, generation: int | None) -> None:
    files = {"power/runtime_status": "suspended", "max_link_speed": "32.0 GT/s PCIe"}
    machine.gpu("0000:01:00.0", NVIDIA, 0x2330, driver="nvidia", files=files)
    (device,) = pci.collect(Host(str(machine.root), wake=wake)).devices
    assert (device["power_state"], device["pcie"]["generation_max"]) == ("suspended", generation)


def test_uevent_alone_is_enough(machine: Any) -> None:
    uevent = "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:73BF\nPCI_SUBSYS_ID=1DA2:440E\n" + "\0" * 100
    machine.write("sys/bus/pci/devices/0000:0c:00.0/uevent", uevent)
    (device,) = pci.collect(host_of(machine)).devices
    assert (device["vendor"], device["driver_bound"], device["generation"]) == ("amd", "amdgpu", "rdna2")
    assert (device["pci"]["device_id"], device["pci"]["subsystem_device_id"]) == ("73bf", "440e")
    assert (device["pci"]["class"], device["pci"]["revision"]) == ("030000", None)
    assert (device["numa_node"], device["cpu_affinity"], device["power_state"]) == (None, None, None)


def test_no_numa_node_is_unknown(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, numa=-1)
    assert pci.collect(host_of(machine)).devices[0]["numa_node"] is None


@pytest.mark.parametrize(
    ("speed", "width", "expected"),
    [
        ("16.0 GT/s PCIe", "16", (4, 16)),
        ("8 GT/s", "4", (3, 4)),
        ("64.0 GT/s PCIe", "1", (6, 1)),
        ("Unknown", "0", (None, None)),
        ("Unknown speed", "255", (None, None)),
        ("17.0 GT/s PCIe", "63", (None, None)),
        ("", "-16", (None, None)),
    ],
)
def test_link(machine: Any, speed: str, width: str, expected: tuple[int | None, int | None]) -> None:
    files = {"max_link_speed": speed, "max_link_width": width}
    machine.gpu("0000:01:00.0", NVIDIA, files=files)
    (device,) = pci.collect(host_of(machine)).devices
    assert (device["pcie"]["generation_max"], device["pcie"]["width_max"]) == expected


def card_with_a_switch(machine: Any, vendor: int, device: int, port: tuple[int, int]) -> None:
    """A GPU at 4x8 inside, on a switch of its own that has a 3x4 link to a root port."""
    below = "sys/devices/pci0000:00"
    for name in ("0000:00:01.0", "0000:01:00.0", "0000:02:00.0"):
        below += f"/{name}"
        machine.write(f"{below}/vendor", f"{port[0]:#06x}\n")
        machine.write(f"{below}/device", f"{port[1]:#06x}\n")
        machine.write(f"{below}/class", "0x060400\n")
    upstream = below.rpartition("/")[0]
    machine.write(f"{upstream}/max_link_speed", "8.0 GT/s PCIe\n")
    machine.write(f"{upstream}/max_link_width", "4\n")
    gpu = f"{below}/0000:03:00.0"
    files = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": "0x030000"}
    for name, text in {**files, "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "8"}.items():
        machine.write(f"{gpu}/{name}", text + "\n")
    machine.link("sys/bus/pci/devices/0000:03:00.0", f"../../../../{gpu}")


@pytest.mark.parametrize(
    ("vendor", "device", "port", "expected"),
    [
        (AMD, 0x744C, (AMD, 0x1478), (3, 4)),
        (INTEL, 0xE20B, (INTEL, 0xE2F0), (3, 4)),
        (AMD, 0x74A1, (0x1022, 0x1500), (3, 4)),
        # The switch of a chipset, with the ids of its vendor: an RX 580 has none of its own, nor has an MI210.
        (AMD, 0x67DF, (0x1022, 0x57AD), (4, 8)),
        (AMD, 0x740F, (0x1022, 0x57AD), (4, 8)),
        (NVIDIA, 0x2204, (0x10B5, 0x8747), (4, 8)),
        # Where the card's switch is not to be seen, the link inside the card says nothing.
        (AMD, 0x744C, (0x1B36, 0x000C), (None, None)),
        (INTEL, 0xE20B, (0x1B36, 0x000C), (None, None)),
    ],
)
def test_link_of_the_slot(
    machine: Any, vendor: int, device: int, port: tuple[int, int], expected: tuple[int | None, int | None]
) -> None:
    card_with_a_switch(machine, vendor, device, port)
    (found,) = pci.collect(host_of(machine)).devices
    assert (found["pcie"]["generation_max"], found["pcie"]["width_max"]) == expected


def test_root_port_of_the_same_vendor_is_no_switch(machine: Any) -> None:
    """An Arc card directly below two Intel bridges: the upper one is the root port, the link of which is not its."""
    card_with_a_switch(machine, INTEL, 0xE20B, (INTEL, 0xE2F0))
    (machine.root / "sys/bus/pci/devices/0000:03:00.0").unlink()
    folder = machine.root / "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0"
    folder.rename(machine.root / "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:03:00.0")
    target = "../../../../sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:03:00.0"
    machine.link("sys/bus/pci/devices/0000:03:00.0", target)
    assert pci.collect(host_of(machine)).devices[0]["pcie"] == UNKNOWN_LINK


@pytest.mark.parametrize(("vendor", "device"), [(INTEL, 0x9B41), (AMD, 0x15BF)])
def test_link_inside_a_processor_is_none(machine: Any, vendor: int, device: int) -> None:
    machine.gpu("0000:64:00.0", vendor, device, files={"max_link_speed": "16.0 GT/s PCIe", "max_link_width": 16})
    assert pci.collect(host_of(machine)).devices[0]["pcie"] == UNKNOWN_LINK


def test_virtual_functions(machine: Any) -> None:
    machine.gpu("0000:03:00.0", NVIDIA, 0x20B5)
    folder = machine.gpu("0000:03:00.4", NVIDIA, 0x20B5)
    machine.link(f"{folder}/physfn", "../0000:03:00.0")
    alone = machine.gpu("0000:04:00.1", NVIDIA, 0x20B5)
    machine.link(f"{alone}/physfn", "../0000:04:00.0")
    found = pci.collect(host_of(machine)).devices
    assert [(device["pci_bus_id"], device["virtualization"]) for device in found] == [
        ("0000:03:00.0", None),
        ("0000:04:00.1", "sriov_vf"),
    ]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0x20B5, "GA100 [A100 PCIe 80GB]"),
        (0x2330, "GH100 [H100 SXM5 80GB]"),
        (0x2331, "GH100 [H100 PCIe]"),
        (0x2339, "nvidia 10de:2339"),
        (0x2340, "nvidia 10de:2340"),
        (0x16C1, "nvidia 10de:16c1"),
    ],
)
def test_product_name(machine: Any, device: int, name: str) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, device)
    machine.write("usr/share/hwdata/pci.ids", PCI_IDS)
    host = host_of(machine)
    assert pci.product_name(host, pci.collect(host).devices[0]) == name


def test_product_name_without_a_list_or_ids(machine: Any) -> None:
    machine.gpu("0000:01:00.0", AMD, 0x73FF)
    host = host_of(machine)
    (device,) = pci.collect(host).devices
    assert pci.product_name(host, device) == "amd 1002:73ff"
    for ids in (None, pci.NO_IDS):
        device["pci"] = ids
        assert pci.product_name(host, device) is None


GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(["0x", "0x10de", "-1", "0x1002\0\0", "1e9", "9" * 5000, "0x" + "f" * 40, "8.0 GT/s", "\n=\n"]).map(
        str.encode
    ),
)
NAMES = ("vendor", "device", "class", "numa_node", "uevent", "max_link_speed", "max_link_width", "local_cpulist")


@settings(max_examples=100)
@given(
    st.dictionaries(st.sampled_from(NAMES), GARBAGE),
    st.sampled_from(["0000:01:00.0", "1:2:3", "\N{SNOWMAN}", "fffffffff:00:00.0"]),
)
def test_garbage_in_the_files_of_a_device(files: dict[str, bytes], name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        for folder in (f"sys/bus/pci/devices/{name}", "sys/class/drm/card0/device", "sys/class/drm/renderD128/device"):
            place = Path(root) / folder
            place.mkdir(parents=True)
            # A GPU's ids, unless the garbage replaces them.
            for file, data in {"vendor": b"0x10de", "class": b"0x030200", **files}.items():
                (place / file).write_bytes(data)
        host = Host(root)
        devices, nvswitches = pci.collect(host)
        assert nvswitches in (0, 1)
        drm.collect(host, devices)
        for device in devices:
            assert device["vendor"] in ("nvidia", "amd", "intel")
            assert device["numa_node"] is None or device["numa_node"] >= 0
            assert pci.product_name(host, device) != ""


def test_files_that_are_folders(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, 0x2204)
    for name in ("uevent", "local_cpulist", "max_link_speed", "drm/renderD128/deep"):
        (machine.root / "sys/bus/pci/devices/0000:01:00.0" / name).mkdir(parents=True)
    (device,) = pci.collect(host_of(machine)).devices
    assert (device["cpu_affinity"], device["render_node"]) == (None, "/dev/dri/renderD128")
