# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import topology
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

# Below a host bridge: a root port, the upstream port of a switch, its downstream ports with a GPU each; at the fourth
# downstream port a second switch.
SWITCH = "0000:00:01.0/0000:01:00.0"
NESTED = f"{SWITCH}/0000:02:03.0/0000:06:00.0"
PLACES = {
    "0000:03:00.0": f"pci0000:00/{SWITCH}/0000:02:00.0/0000:03:00.0",
    "0000:04:00.0": f"pci0000:00/{SWITCH}/0000:02:01.0/0000:04:00.0",
    "0000:08:00.0": f"pci0000:00/{NESTED}/0000:07:00.0/0000:08:00.0",
    "0000:20:00.0": "pci0000:00/0000:00:03.0/0000:20:00.0",
    "0000:20:00.1": "pci0000:00/0000:00:03.0/0000:20:00.1",
    "0000:00:02.0": "pci0000:00/0000:00:02.0",
    "0000:41:00.0": "pci0000:40/0000:40:01.0/0000:41:00.0",
    "0000:81:00.0": "pci0000:80/0000:80:01.0/0000:81:00.0",
    # Hyper-V gives each device a host bridge of its own; a host bridge may itself be behind a PCI function (VMD).
    "0001:00:00.0": "LNXSYSTM:00/VMBUS:00/5620e0c7-8062/pci0001:00/0001:00:00.0",
    "0002:00:00.0": "LNXSYSTM:00/VMBUS:00/5620e0c7-8063/pci0002:00/0002:00:00.0",
    "10000:01:00.0": "pci0000:00/0000:00:0e.0/pci10000:00/10000:00:02.0/10000:01:00.0",
}


def nvidia(address: str | None = None, **known: Any) -> Device:
    return new_device("nvidia", address, **{"architecture": "9.0", "usable": True, **known})


def link(kind: str, peer: str | None, peer_type: str | None = "gpu", count: int = 4) -> dict[str, Any]:
    return {"type": kind, "peer_bus_id": peer, "peer_type": peer_type, "count": count, "weight": None}


def place(machine: Any, *addresses: str) -> None:
    for address in addresses:
        machine.link(f"sys/bus/pci/devices/{address}", f"../../../devices/{PLACES[address]}")


def node(machine: Any, number: int, cpus: str) -> None:
    machine.write(f"sys/devices/system/node/node{number}/cpulist", cpus)


def classes(machine: Any, *devices: Device) -> list[list[str]]:
    return topology.collect(Host(str(machine.root)), list(devices))["matrix"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0000:03:00.0", "0000:04:00.0", "PIX"),
        ("0000:20:00.0", "0000:20:00.1", "PIX"),
        ("0000:03:00.0", "0000:08:00.0", "PXB"),
        ("0000:03:00.0", "0000:20:00.0", "PHB"),
        ("0000:03:00.0", "0000:00:02.0", "PHB"),
        ("0000:03:00.0", "0000:41:00.0", "NODE"),
        ("0000:03:00.0", "0000:81:00.0", "SYS"),
        ("0001:00:00.0", "0002:00:00.0", "NODE"),
        ("0000:03:00.0", "10000:01:00.0", "NODE"),
    ],
)
def test_classes_of_the_pci_tree(machine: Any, first: str, second: str, expected: str) -> None:
    place(machine, first, second)
    nodes = {"0000:81:00.0": 1}
    devices = [nvidia(address, numa_node=nodes.get(address, 0)) for address in (first, second)]
    assert classes(machine, *devices) == [["SELF", expected], [expected, "SELF"]]


@pytest.mark.parametrize(
    ("numa", "cpus", "expected"),
    [
        ((None, None), ["0-3"], "NODE"),
        ((None, None), ["0-3", ""], "NODE"),
        ((None, None), ["0-3", "4-7"], "UNKNOWN"),
        ((None, None), [], "UNKNOWN"),
        ((0, None), ["0-3", "4-7"], "UNKNOWN"),
        ((1, 1), ["0-3", "4-7"], "NODE"),
        ((0, 1), ["0-3", "4-7"], "SYS"),
    ],
)
def test_between_host_bridges_the_node_counts(
    machine: Any, numa: tuple[int | None, int | None], cpus: list[str], expected: str
) -> None:
    place(machine, "0000:03:00.0", "0000:41:00.0")
    for number, text in enumerate(cpus):
        node(machine, number, text)
    devices = [nvidia("0000:03:00.0", numa_node=numa[0]), nvidia("0000:41:00.0", numa_node=numa[1])]
    assert classes(machine, *devices)[0][1] == expected


@pytest.mark.parametrize(
    ("numa", "expected"), [((0, 1), "SYS"), ((0, 0), "UNKNOWN"), ((None, None), "UNKNOWN"), ((0, None), "UNKNOWN")]
)
def test_without_the_pci_tree(machine: Any, numa: tuple[int | None, int | None], expected: str) -> None:
    # One has a directory in place of the link, as recorded machines do; one has no address at all.
    (machine.root / "sys/bus/pci/devices/0000:03:00.0").mkdir(parents=True)
    node(machine, 0, "0-3")
    devices = [nvidia("0000:03:00.0", numa_node=numa[0]), nvidia(uuid="GPU-1", numa_node=numa[1])]
    assert classes(machine, *devices)[0][1] == expected


def test_the_graphics_class_leads_to_the_pci_tree_as_well(machine: Any) -> None:
    for number, address in enumerate(("0000:03:00.0", "0000:04:00.0")):
        (machine.root / "sys/devices" / PLACES[address]).mkdir(parents=True)
        machine.link(f"sys/class/drm/card{number}/device", f"../../../devices/{PLACES[address]}")
    devices = [
        new_device("amd", address, folder=f"sys/class/drm/card{number}/device")
        for number, address in enumerate(("0000:03:00.0", "0000:04:00.0"))
    ]
    assert classes(machine, *devices)[0][1] == "PIX"


def test_direct_links(machine: Any) -> None:
    # The link is told by one end only; a bridge of the other pair is not there.
    devices = [
        nvidia("0000:03:00.0", links=[link("nvlink", "0000:04:00.0")]),
        nvidia("0000:04:00.0"),
        nvidia("0000:41:00.0", links=[link("nvlink", "0000:81:00.0", count=0)]),
        nvidia("0000:81:00.0", links=[link("c2c", None, "cpu")]),
    ]
    found = topology.collect(Host(str(machine.root)), devices)
    assert found["matrix"][0] == ["SELF", "NVLINK", "UNKNOWN", "UNKNOWN"]
    assert found["matrix"][2] == ["UNKNOWN", "UNKNOWN", "SELF", "UNKNOWN"]
    assert found["link_domains"] == [
        {"type": "nvlink", "numa_node": None, "devices": [0, 1]},
        {"type": "pcie", "numa_node": None, "devices": [2, 3]},
    ]


def fabric(uuid: str | None, clique: int | None) -> dict[str, Any]:
    return {"state": "completed", "status": "ok", "cluster_uuid": uuid, "clique_id": clique, "healthy": True}


@pytest.mark.parametrize(
    ("switches", "fabrics", "expected"),
    [
        (("0000:c1:00.0", "0000:c1:00.0"), (None, None), "NVLINK"),
        (("0000:c1:00.0", "0000:c2:00.0"), (None, None), "UNKNOWN"),
        ((None, None), (None, None), "NVLINK"),
        (("0000:c1:00.0", "0000:c2:00.0"), (fabric("a", 0), fabric("a", 0)), "NVLINK"),
        (("0000:c1:00.0", "0000:c1:00.0"), (fabric("a", 0), fabric("a", 1)), "UNKNOWN"),
        (("0000:c1:00.0", "0000:c1:00.0"), (fabric("a", 0), fabric("b", 0)), "UNKNOWN"),
        (("0000:c1:00.0", "0000:c1:00.0"), (fabric("a", 0), fabric(None, None)), "NVLINK"),
        (("0000:c1:00.0", "0000:c1:00.0"), (fabric("a", 0), {**fabric("0", 0), "state": "in_progress"}), "NVLINK"),
        (("0000:c1:00.0", "0000:c2:00.0"), ({**fabric("0", 0), "state": "not_supported"},) * 2, "UNKNOWN"),
    ],
)
def test_switches(machine: Any, switches: tuple[Any, Any], fabrics: tuple[Any, Any], expected: str) -> None:
    devices = [
        nvidia(f"0000:0{number}:00.0", links=[link("nvlink", switch, "switch", 18)], fabric=known)
        for number, (switch, known) in enumerate(zip(switches, fabrics, strict=True), start=1)
    ]
    assert classes(machine, *devices)[0][1] == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [(fabric(None, 0), "NVLINK"), (fabric(None, 1), "UNKNOWN"), (fabric("a", 0), "UNKNOWN"), (None, "UNKNOWN")],
)
def test_a_fabric_without_links(machine: Any, second: dict[str, Any] | None, expected: str) -> None:
    # As nvidia-smi tells it.
    devices = [nvidia("0000:01:00.0", fabric=fabric(None, 0)), nvidia("0000:02:00.0", fabric=second)]
    assert classes(machine, *devices)[0][1] == expected


@pytest.mark.parametrize(
    ("hives", "expected"),
    [
        (("0x2f9c8", "2F9C8"), "XGMI"),
        (("a", "b"), "UNKNOWN"),
        (("0", "0"), "UNKNOWN"),
        (("0x0", "0x0"), "UNKNOWN"),
        (("", ""), "UNKNOWN"),
        ((None, None), "UNKNOWN"),
    ],
)
def test_hives(machine: Any, hives: tuple[Any, Any], expected: str) -> None:
    devices = [new_device("amd", f"0000:0{number}:00.0", hive_id=hive) for number, hive in enumerate(hives, start=1)]
    assert classes(machine, *devices)[0][1] == expected


def test_eight_gpus_of_one_fabric_of_which_some_cannot_be_used_whole(machine: Any) -> None:
    devices = [
        nvidia(
            f"0000:{number:02x}:00.0",
            numa_node=number // 4,
            links=[link("nvlink", "0000:c1:00.0", "switch")],
            fabric=fabric("0", 0),
        )
        for number in range(8)
    ]
    devices[2]["mig"] = {"mode": True, "pending_mode": True, "instances": []}
    devices[5]["usable"] = False
    found = topology.collect(Host(str(machine.root)), devices)
    assert {kind for row in found["matrix"] for kind in row} == {"SELF", "NVLINK"}
    assert found["link_domains"] == [{"type": "nvlink", "numa_node": None, "devices": [0, 1, 3, 4, 6, 7]}]


def test_links_through_another_gpu_are_one_domain(machine: Any) -> None:
    # A ring of four, as half of a DGX-1: opposite corners have no link.
    ring = [f"0000:0{number}:00.0" for number in range(4)]
    devices = [
        nvidia(address, numa_node=0, links=[link("nvlink", ring[(number + 1) % 4])])
        for number, address in enumerate(ring)
    ]
    found = topology.collect(Host(str(machine.root)), devices)
    assert found["matrix"][0] == ["SELF", "NVLINK", "UNKNOWN", "NVLINK"]
    assert found["link_domains"] == [{"type": "nvlink", "numa_node": 0, "devices": [0, 1, 2, 3]}]


def test_two_hives_and_a_partitioned_card(machine: Any) -> None:
    devices = [
        new_device(
            "amd",
            f"0000:0{number}:00.0",
            architecture="gfx90a",
            usable=True,
            hive_id="ab" if number < 3 else "cd",
            numa_node=number // 3,
        )
        for number in range(6)
    ]
    devices[1]["partition"] = {"compute": "CPX", "memory": "NPS4", "count": 8, "instances": []}
    found = topology.collect(Host(str(machine.root)), devices)
    assert found["link_domains"] == [
        {"type": "xgmi", "numa_node": 0, "devices": [0, 2]},
        {"type": "xgmi", "numa_node": 1, "devices": [3, 4, 5]},
    ]


def test_unlinked_gpus_by_node_vendor_and_architecture(machine: Any) -> None:
    devices = [
        nvidia("0000:01:00.0", numa_node=0, architecture="8.9"),
        nvidia("0000:02:00.0", numa_node=1, architecture="8.9"),
        nvidia("0000:03:00.0", numa_node=0, architecture="8.9"),
        nvidia("0000:04:00.0", numa_node=0, architecture="8.6"),
        nvidia("0000:05:00.0", numa_node=None, architecture="8.9"),
        new_device("amd", "0000:06:00.0", usable=True, architecture="gfx1100"),
        new_device("amd", "0000:07:00.0", usable=True, architecture="gfx1100"),
    ]
    domains = topology.collect(Host(str(machine.root)), devices)["link_domains"]
    assert {domain["type"] for domain in domains} == {"pcie"}
    assert [(domain["numa_node"], domain["devices"]) for domain in domains] == [
        (0, [0, 2]),
        (1, [1]),
        (0, [3]),
        (None, [4]),
        (None, [5, 6]),
    ]


def test_no_device(machine: Any) -> None:
    assert topology.collect(Host(str(machine.root)), []) == {"matrix": [], "link_domains": []}


def test_facts_of_a_machine_have_both(machine: Any) -> None:
    for address in ("0000:03:00.0", "0000:04:00.0"):
        (machine.root / "sys/devices" / PLACES[address]).mkdir(parents=True)
        place(machine, address)
        for name, text in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200"), ("numa_node", "0")):
            machine.write(f"sys/devices/{PLACES[address]}/{name}", text)
    found = machine.facts()["topology"]
    assert found == {"matrix": [["SELF", "PIX"], ["PIX", "SELF"]], "link_domains": []}


ADDRESSES = sorted(PLACES)
LINKS = st.builds(
    link,
    st.sampled_from(["nvlink", "xgmi", "c2c"]),
    st.sampled_from([None, "0000:c1:00.0", *ADDRESSES]),
    st.sampled_from([None, "gpu", "switch", "cpu"]),
    st.integers(0, 4),
)
DEVICES = st.lists(
    st.builds(
        new_device,
        st.sampled_from(["nvidia", "amd"]),
        st.sampled_from([None, *ADDRESSES]),
        architecture=st.sampled_from([None, "9.0", "8.9"]),
        usable=st.booleans(),
        numa_node=st.sampled_from([None, 0, 1]),
        links=st.lists(LINKS, max_size=3),
        fabric=st.one_of(
            st.none(), st.builds(fabric, st.sampled_from([None, "a", "b"]), st.sampled_from([None, 0, 1]))
        ),
        hive_id=st.sampled_from([None, "0", "ab", "cd"]),
        mig=st.booleans().map(lambda mode: {"mode": mode, "pending_mode": None, "instances": []}),
        partition=st.sampled_from([None, None, {"compute": "CPX", "memory": None, "count": 2, "instances": []}]),
    ),
    max_size=8,
    unique_by=lambda device: device["pci_bus_id"] or id(device),
)


@settings(max_examples=200)
@given(DEVICES, st.sets(st.sampled_from(ADDRESSES)))
def test_every_machine_has_a_symmetric_matrix_and_whole_domains(devices: list[Device], placed: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bus = Path(folder) / "sys/bus/pci/devices"
        bus.mkdir(parents=True)
        for address in placed:
            (bus / address).symlink_to(f"../../../devices/{PLACES[address]}")
        found = topology.collect(Host(folder), devices)
    json.dumps(found)
    matrix, positions = found["matrix"], range(len(devices))
    for row, column in itertools.product(positions, positions):
        assert matrix[row][column] == matrix[column][row]
        assert (matrix[row][column] == "SELF") == (row == column)
    whole = [
        position
        for position, device in enumerate(devices)
        if device["usable"] and not device["mig"]["mode"] and device["partition"] is None
    ]
    assert sorted(position for domain in found["link_domains"] for position in domain["devices"]) == whole
    for domain in found["link_domains"]:
        members = [devices[position] for position in domain["devices"]]
        assert len({(device["vendor"], device["architecture"]) for device in members}) == 1
        assert domain["type"] == "pcie" or len(members) > 1
        nodes = {device["numa_node"] for device in members}
        assert domain["numa_node"] == (nodes.pop() if len(nodes) == 1 else None)
