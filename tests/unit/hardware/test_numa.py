# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import numa, system
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30


def add_node(machine: Any, number: int, cpus: str, memory_gib: tuple[int, int], distance: str) -> None:
    """Add a node with its memory: in all, free."""
    folder = f"sys/devices/system/node/node{number}"
    machine.write(f"{folder}/cpulist", cpus + "\n")
    machine.write(f"{folder}/distance", distance + "\n")
    total, free = memory_gib
    rows = (("MemTotal", total), ("MemFree", free), ("MemUsed", total - free))
    text = "".join(f"Node {number} {key}:       {gib << 20} kB\n" for key, gib in rows)
    machine.write(f"{folder}/meminfo", text + f"Node {number} HugePages_Total:     0\n")


def test_two_sockets(machine: Any) -> None:
    add_node(machine, 0, "0-15,32-47", (32, 20), "10 21")
    add_node(machine, 1, "16-31,48-63", (32, 30), "21 10")
    machine.write("sys/devices/system/node/possible", "0-1\n")
    facts = machine.facts()
    assert facts["numa"] == [
        {
            "node": 0,
            "cpus": "0-15,32-47",
            "memory_total_bytes": 32 * GIB,
            "memory_free_bytes": 20 * GIB,
            "distances": [10, 21],
        },
        {
            "node": 1,
            "cpus": "16-31,48-63",
            "memory_total_bytes": 32 * GIB,
            "memory_free_bytes": 30 * GIB,
            "distances": [21, 10],
        },
    ]
    assert (facts["memory_total_bytes"], facts["memory_available_bytes"]) == (64 * GIB, 48 * GIB)


def test_nodes_are_in_the_order_of_their_numbers(machine: Any) -> None:
    for number in (10, 2, 0):
        add_node(machine, number, str(number), (1, 1), "10")
    assert [node["node"] for node in numa.collect(Host(str(machine.root)))] == [0, 2, 10]


def test_memory_of_a_gpu_is_not_the_hosts(machine: Any) -> None:
    # POWER9: the kernel has each GPU's memory online as node 255, 254, ...; of 64 GiB in meminfo 32 are the GPUs'.
    add_node(machine, 0, "0-15", (32, 20), "10 80 80")
    add_node(machine, 254, "", (16, 15), "80 10 80")
    add_node(machine, 255, "", (16, 16), "80 80 10")
    facts = machine.facts()
    assert [node["cpus"] for node in facts["numa"]] == ["0-15", None, None]
    assert (facts["memory_total_bytes"], facts["memory_available_bytes"]) == (32 * GIB, 17 * GIB)


def test_more_is_never_taken_away_than_there_is(machine: Any) -> None:
    host = Host(str(machine.root))
    with_cpus = {"node": 0, "cpus": "0", "memory_total_bytes": GIB, "memory_free_bytes": 0, "distances": []}
    without = {"node": 1, "cpus": None, "memory_total_bytes": 10 * GIB, "memory_free_bytes": 60 * GIB, "distances": []}
    assert system.memory(host, [with_cpus, without]) == (54 * GIB, 0)
    # A container's meminfo shows its limit, the nodes are the machine's.
    larger = {**without, "memory_total_bytes": 64 * GIB}
    assert system.memory(host, [with_cpus, larger]) == (64 * GIB, 48 * GIB)
    assert system.memory(host, [without]) == (64 * GIB, 48 * GIB)
    unknown = {**without, "memory_total_bytes": None, "memory_free_bytes": None}
    assert system.memory(host, [with_cpus, unknown]) == (64 * GIB, 48 * GIB)


def test_a_node_that_does_not_say_what_it_is_costs_itself_only(machine: Any) -> None:
    add_node(machine, 0, "0-3", (32, 20), "10 20")
    add_node(machine, 1, "four", (32, 20), "10 x")
    (machine.root / "sys/devices/system/node/node2").mkdir()
    facts = machine.facts()
    assert [node["node"] for node in facts["numa"]] == [0]
    assert [error["source"] for error in facts["errors"]] == ["numa", "numa"]
    assert facts["memory_total_bytes"] == 64 * GIB


def test_recorded_gb10(recorded: Path, tmp_path: Path) -> None:
    with tarfile.open(recorded / "nvidia/hwloc/nvidia-dgx-gb10.tar.bz2") as archive:
        wanted = ("/proc/meminfo", "/node/node0/cpulist", "/node/node0/meminfo", "/node/node0/distance")
        archive.extractall(tmp_path, [row for row in archive if row.name.endswith(wanted)], filter="data")
    host = Host(str(tmp_path / "nvidia-dgx-gb10"))
    (node,) = numa.collect(host)
    assert (node["cpus"], node["distances"]) == ("0-19", [10])
    assert node["memory_total_bytes"] == 125508468 * 1024
    assert system.memory(host, [node])[0] == 125508468 * 1024


WORDS = st.sampled_from(
    [b"Node 0 MemTotal:", b"1 kB", b"kB", b"0-3", b",", b"\n", b"-1", b"10 21", b" 999999999999999"]
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(*[st.one_of(st.none(), st.binary(max_size=30), st.lists(WORDS).map(b"".join))] * 3), max_size=3),
    st.one_of(st.binary(max_size=40), st.just(b"MemTotal: 64 kB\nMemAvailable: 60 kB")),
)
def test_no_content_raises(nodes: list[tuple[bytes | None, ...]], meminfo: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "proc").mkdir()
        (root / "proc/meminfo").write_bytes(meminfo)
        for number, files in enumerate(nodes):
            place = root / f"sys/devices/system/node/node{number}"
            place.mkdir(parents=True)
            for name, content in zip(("cpulist", "meminfo", "distance"), files, strict=True):
                if content is not None:
                    (place / name).write_bytes(content)
        host = Host(folder)
        found = numa.collect(host)
        json.dumps(found)
        assert len(found) + len(host.report.errors) == len(nodes)
        total, available = system.memory(host, found)
        assert total is None or total > 0
        assert available is None or available >= 0


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "128-255,384-511"])
def test_lists_of_processors(text: str) -> None:
    assert numa.CPU_LIST.fullmatch(text)
