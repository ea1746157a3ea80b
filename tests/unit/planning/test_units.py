# SPDX-License-Identifier: Apache-2.0
"""What of the facts services can be put on, and how users name it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Unit
from ansible_collections.fleet.inference.plugins.module_utils.planning.units import find, names, units, unusable
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, H100, MIB, device, facts, gpu_facts, instance, mi300x, mig_gpu


def ids(found: tuple[Unit, ...]) -> list[str]:
    return [unit.identity for unit in found]


def test_a_whole_gpu() -> None:
    gpu = device(H100, 81559, "9.0", numa_node=1)
    (unit,) = units(gpu_facts("cuda", [gpu]), "cuda")
    assert unit == Unit(
        identity=gpu["uuid"],
        kind="gpu",
        title=f"GPU 0 ({H100})",
        index=0,
        vendor="nvidia",
        architecture="9.0",
        memory_bytes=81559 * MIB,
        unified=False,
        numa_node=1,
        domain=0,
        link="pcie",
        device=gpu,
    )
    assert unit.device is gpu


@pytest.mark.parametrize(("tier", "expected"), [("cuda", [0]), ("rocm", [1]), ("vulkan", [1, 2, 0]), ("cpu", [])])
def test_a_tier_uses_the_devices_of_its_vendor(tier: str, expected: list[int]) -> None:
    devices = [
        device(H100, 81559, "9.0"),
        device("AMD Radeon RX 7900 XTX", 24560, "gfx1100", vendor="amd", uuid=None, pci_bus_id="0000:41:00.0"),
        device("Intel Arc A770", 16256, None, vendor="intel", uuid=None, pci_bus_id="0000:81:00.0"),
    ]
    identities = [devices[0]["uuid"], "0000:41:00.0", "0000:81:00.0"]
    node = gpu_facts("cuda", devices)
    assert ids(units(node, tier)) == [identities[position] for position in expected]
    assert len(unusable(node, tier)) == (0 if tier == "cpu" else 3 - len(expected))


def test_the_reason_names_the_device() -> None:
    devices = [
        device(H100, 81559, "9.0", usable=False, unusable_reason="bound to vfio-pci"),
        device(H100, None, "9.0", index=1),
        device("AMD Radeon", 24560, "gfx1100", index=0, vendor="amd", uuid="x", pci_bus_id="0000:41:00.0"),
        mig_gpu([], index=2),
        device(H100, 81559, "9.0", index=3),
    ]
    node = gpu_facts("cuda", devices)
    assert ids(units(node, "cuda")) == [devices[4]["uuid"]]
    assert unusable(node, "cuda") == [
        "GPU 0 (AMD Radeon): it is no NVIDIA GPU, which tier cuda needs",
        f"GPU 0 ({H100}): bound to vfio-pci",
        f"GPU 1 ({H100}): its memory is unknown; install its driver and gather the facts again",
        f"GPU 2 ({H100}): MIG is enabled and has no instances",
    ]


def test_unified_memory_needs_no_number() -> None:
    (unit,) = units(gpu_facts("cuda", [device("NVIDIA GB10", None, "12.1", unified_memory=True)]), "cuda")
    assert (unit.memory_bytes, unit.unified, unit.budget) == (None, True, 0)


def test_the_host_s_memory_is_no_unit_s_own() -> None:
    (unit,) = units(gpu_facts("cuda", [device("NVIDIA GB10", 120000, "12.1", unified_memory=True)]), "cuda")
    assert unit.memory_bytes is None


def test_a_guest_s_vgpu_is_a_unit_and_a_host_s_is_none() -> None:
    guest = device("NVIDIA A16-16Q", 16384, "8.6", virtualization="vgpu_guest")
    host = mig_gpu(
        [instance(0)], index=1, virtualization="vgpu_host", unusable_reason="it serves virtual machines (vGPU host)"
    )
    node = gpu_facts("cuda", [guest, host])
    assert ids(units(node, "cuda")) == [guest["uuid"]]
    assert unusable(node, "cuda") == [f"GPU 1 ({H100}): it serves virtual machines (vGPU host)"]


def test_mig_instances_stand_for_their_gpu() -> None:
    gpu = mig_gpu([instance(2), instance(10, uuid=None), instance(0, "3g.40gb", 40448)])
    found = units(gpu_facts("cuda", [gpu, device(H100, 81559, "9.0", index=1)]), "cuda")
    assert [unit.title for unit in found] == [
        f"MIG 3g.40gb 0 of GPU 0 ({H100})",
        f"MIG 1g.10gb 2 of GPU 0 ({H100})",
        f"MIG 1g.10gb 10 of GPU 0 ({H100})",
        f"GPU 1 ({H100})",
    ]
    assert ids(found)[:3] == ["MIG-00000000", "MIG-00000002", "0000:01:00.0#10"]
    assert [(unit.kind, unit.domain, unit.link) for unit in found] == [("mig", None, None)] * 3 + [("gpu", 0, "pcie")]
    assert found[0].memory_bytes == 40448 * MIB
    assert found[1].instance == instance(2)


def test_compute_instances_share_the_memory_of_their_gpu_instance() -> None:
    shared = [
        instance(0, "1c.3g.40gb", 40448, gpu_instance_id=1, memory_shared=True),
        instance(1, "2c.3g.40gb", 40448, gpu_instance_id=1, compute_instance_id=1, memory_shared=True),
    ]
    found = units(gpu_facts("cuda", [mig_gpu([*shared, instance(2, "3g.40gb", 40448)])]), "cuda")
    assert [unit.memory_bytes for unit in found] == [20224 * MIB, 20224 * MIB, 40448 * MIB]


def test_a_mig_instance_without_known_memory_is_none() -> None:
    node = gpu_facts("cuda", [mig_gpu([instance(0, memory_total_bytes=None), instance(1)])])
    assert ids(units(node, "cuda")) == ["MIG-00000001"]
    assert unusable(node, "cuda") == [
        f"MIG 1g.10gb 0 of GPU 0 ({H100}): its memory is unknown; install its driver and gather the facts again"
    ]


def test_instances_of_a_lost_gpu_are_none() -> None:
    node = gpu_facts("cuda", [mig_gpu([instance(0)], health="lost", unusable_reason="it is lost")])
    assert units(node, "cuda") == ()
    assert unusable(node, "cuda") == [f"GPU 0 ({H100}): it is lost"]


def test_partitions_stand_for_their_card() -> None:
    found = units(gpu_facts("rocm", [mi300x(12)]), "rocm")
    assert ids(found) == [f"0000:c1:00.0#{number}" for number in range(12)]
    assert found[3].title == "CPX partition 3 of GPU 0 (AMD Instinct MI300X)"
    assert (found[3].kind, found[3].memory_bytes) == ("partition", 24 * GIB)
    assert found[3].instance is not None
    assert found[3].instance["render_node"] == "/dev/dri/renderD131"


def test_a_partition_of_unknown_memory_has_its_part_of_the_card() -> None:
    card = mi300x(8)
    for item in card["partition"]["instances"]:
        item["memory_total_bytes"] = None
    assert {unit.memory_bytes for unit in units(gpu_facts("rocm", [card]), "rocm")} == {24576 * MIB}


def test_a_partitioned_card_without_known_partitions_is_none() -> None:
    card = mi300x(0, partition={"compute": "CPX", "memory": None, "count": 8, "instances": []})
    node = gpu_facts("rocm", [card])
    assert units(node, "rocm") == ()
    assert "partitioned (CPX)" in unusable(node, "rocm")[0]


@pytest.mark.parametrize(
    ("titles", "expected", "short"),
    [
        (["GPU 0 (A)", "GPU 2 (A)", "GPU 1 (A)"], "GPU 0-2 (A)", "GPU 0-2"),
        (["GPU 0 (A)", "GPU 1 (B)"], "GPU 0 (A), GPU 1 (B)", "GPU 0-1"),
        (["MIG 1g 1 of GPU 0 (A)", "MIG 1g 3 of GPU 0 (A)"], "MIG 1g 1, 3 of GPU 0 (A)", "MIG 1g 1, 3 of GPU 0"),
        (["MIG 1g 1 of GPU 0 (A)", "MIG 1g 1 of GPU 1 (A)"], "MIG 1g 1 of GPU 0-1 (A)", "MIG 1g 1 of GPU 0-1"),
        (["host memory"], "host memory", "host memory"),
        ([], "", ""),
    ],
)
def test_names_of_several_units(titles: list[str], expected: str, short: str) -> None:
    assert names(titles) == expected
    assert names(titles, short=True) == short


def test_a_card_in_one_partition_is_whole() -> None:
    card = mi300x(0, partition={"compute": "SPX", "memory": "NPS1", "count": 1, "instances": []})
    (unit,) = units(gpu_facts("rocm", [card]), "rocm")
    assert (unit.kind, unit.identity) == ("gpu", "GPU-a1")


def test_two_devices_with_one_uuid_are_two_units() -> None:
    devices = [device(H100, 81559, "9.0", index=index, uuid="GPU-1") for index in range(2)]
    assert ids(units(gpu_facts("cuda", devices), "cuda")) == ["0000:01:00.0", "0000:02:00.0"]


def test_link_domains_of_the_facts() -> None:
    devices = [device(H100, 81559, "9.0", index=index) for index in range(5)]
    devices[2]["usable"] = False
    domains = [
        {"type": "nvlink", "numa_node": None, "devices": [3, 4]},
        {"type": "pcie", "numa_node": 0, "devices": [0, 1]},
    ]
    found = units(gpu_facts("cuda", devices, topology={"matrix": [], "link_domains": domains}), "cuda")
    assert [(unit.index, unit.domain, unit.link) for unit in found] == [
        (0, 0, "pcie"),
        (1, 0, "pcie"),
        (3, 1, "nvlink"),
        (4, 1, "nvlink"),
    ]


def test_without_topology_alike_gpus_are_one_domain() -> None:
    devices = [
        device("A", 24576, "8.6"),
        device("B", 24576, "8.9", index=1),
        device("A", 24576, "8.6", index=2),
        device("C", 24576, None, index=3),
        device("D", 24576, None, index=4),
    ]
    assert [unit.domain for unit in units(gpu_facts("cuda", devices), "cuda")] == [0, 1, 0, 2, 3]


states = st.sampled_from(["whole", "mig", "lost", "memory", "partition", "other"])


def shaped(index: int, state: str) -> dict[str, Any]:
    if state == "mig":
        return mig_gpu([instance(number, uuid=f"MIG-{index}-{number}") for number in range(3)], index=index)
    if state == "partition":
        return mi300x(2, index=index, uuid=f"x{index}", pci_bus_id=f"0000:c{index}:00.0")
    changes: dict[str, Any] = {"lost": {"usable": False}, "other": {"vendor": "intel", "uuid": None}}.get(state, {})
    return device("GPU", None if state == "memory" else 24576, "8.6", index=index, **changes)


@settings(max_examples=150, deadline=None)
@given(st.lists(states, max_size=6), st.sampled_from(["cuda", "rocm", "vulkan"]), st.randoms())
def test_every_device_is_units_or_has_a_reason_whatever_the_order(
    shapes: list[str], tier: str, chance: random.Random
) -> None:
    devices = [shaped(index, state) for index, state in enumerate(shapes)]
    whole = [index for index, state in enumerate(shapes) if state == "whole"]
    topology = {"link_domains": [{"type": "nvlink", "devices": whole}]} if whole else None
    node = facts(tier=tier, devices=devices, topology=topology)
    found = units(node, tier)
    assert len(set(ids(found))) == len(found)
    assert all(unit.device["usable"] or unit.kind == "mig" for unit in found)
    on = [position for position, item in enumerate(devices) if any(unit.device is item for unit in found)]
    assert len(on) + len(unusable(node, tier)) == len(devices)

    order = list(range(len(devices)))
    chance.shuffle(order)
    moved = {"link_domains": [{"type": "nvlink", "devices": [order.index(index) for index in whole]}]}
    shuffled = facts(tier=tier, devices=[devices[index] for index in order], topology=moved if whole else None)
    assert units(shuffled, tier) == found
    assert unusable(shuffled, tier) == unusable(node, tier)


NODE = gpu_facts(
    "cuda",
    [
        device(H100, 81559, "9.0", uuid="GPU-aa"),
        mig_gpu([instance(0), instance(1)], index=1, uuid="GPU-bb"),
        device(H100, 81559, "9.0", index=2, uuid="GPU-cc", usable=False, unusable_reason="it is lost"),
        device(H100, None, "9.0", index=3, uuid="GPU-dd"),
        device("AMD Radeon", 24560, "gfx1100", index=0, vendor="amd", uuid="x", pci_bus_id="0000:41:00.0"),
    ],
)


@pytest.mark.parametrize("pin", ["GPU-aa", "gpu-AA", 0, "0", "0000:01:00.0", "01:00.0", "00000000:01:00.0"])
def test_a_gpu_has_several_names(pin: str | int) -> None:
    found = find(units(NODE, "cuda"), pin, NODE)
    assert isinstance(found, Unit)
    assert found.identity == "GPU-aa"


def test_an_instance_and_a_partition_have_their_identity() -> None:
    nvidia, amd = units(NODE, "cuda"), units(gpu_facts("rocm", [mi300x()]), "rocm")
    assert find(nvidia, "MIG-00000001") is nvidia[2]
    assert find(amd, "0000:C1:00.0#7") is amd[7]


@pytest.mark.parametrize("pin", ["GPU-bb", 1, "02:00.0"])
def test_a_gpu_in_mig_mode_names_its_instances(pin: str | int) -> None:
    assert find(units(NODE, "cuda"), pin) == (
        f"GPU 1 ({H100}), which is in MIG mode; name one of its instances: "
        f"MIG-00000000 (MIG 1g.10gb 0 of GPU 1 ({H100})), MIG-00000001 (MIG 1g.10gb 1 of GPU 1 ({H100}))"
    )


def test_a_partitioned_card_names_its_parts() -> None:
    found = find(units(gpu_facts("rocm", [mi300x(10)]), "rocm"), 0)
    assert isinstance(found, str)
    assert found.startswith("GPU 0 (AMD Instinct MI300X), which is partitioned; name a part: 0000:c1:00.0#0 (CPX")
    assert found.endswith("#7 (CPX partition 7 of GPU 0 (AMD Instinct MI300X)) and 2 more")


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        (2, f"GPU 2 ({H100}), which is not usable: it is lost; use GPU-aa"),
        ("GPU-dd", f"GPU 3 ({H100}), which is not usable: its memory is unknown"),
        ("41:00.0", "GPU 0 (AMD Radeon), which is not usable: it does not belong to the node's tier; use GPU-aa"),
        (9, "9, which this node does not have; use GPU-aa"),
        ("GPU-ee", "GPU-ee, which this node does not have; use GPU-aa"),
    ],
)
def test_what_cannot_be_pinned(pin: str | int, words: str) -> None:
    found = find(units(NODE, "cuda"), pin, NODE)
    assert isinstance(found, str)
    assert found.startswith(words)


def test_an_index_that_two_vendors_have_names_both() -> None:
    devices = [
        device("A", 24576, "8.6"),
        device("B", 16384, None, vendor="intel", uuid=None, pci_bus_id="0000:81:00.0"),
    ]
    found = find(units(gpu_facts("vulkan", devices), "vulkan"), 0)
    assert found == f"0, which several GPUs are: 0000:81:00.0 (GPU 0 (B)), {devices[0]['uuid']} (GPU 0 (A))"
