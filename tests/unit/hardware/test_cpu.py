# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import cpu
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

EPYC = (
    "model name\t: AMD EPYC 9654 96-Core Processor\nflags\t\t: fpu lm avx2 AVX512F avx512_vnni amx_tile smep fma f16c\n"
)


def x86(threads: list[tuple[int, int]]) -> str:
    """A cpuinfo with a block for each thread: (socket, core)."""
    return "\n".join(
        f"processor\t: {number}\nphysical id\t: {socket}\ncore id\t\t: {core}\n{EPYC}"
        for number, (socket, core) in enumerate(threads)
    )


def arm(parts: list[tuple[int, int]], features: str = "fp asimd asimddp i8mm bf16 sve sve2") -> str:
    return "\n".join(
        f"processor\t: {number}\nFeatures\t: {features}\nCPU implementer\t: 0x{implementer:02x}\n"
        f"CPU architecture: 8\nCPU part\t: 0x{part:03x}\n"
        for number, (implementer, part) in enumerate(parts)
    )


def test_two_sockets_with_two_threads_a_core(machine: Any) -> None:
    # Core numbers repeat on the second socket.
    machine.write("proc/cpuinfo", x86([(0, 0), (0, 1), (1, 0), (1, 1)] * 2))
    machine.write("sys/devices/system/cpu/online", "0-7\n")
    assert machine.facts()["cpu"] == {
        "model": "AMD EPYC 9654 96-Core Processor",
        "architecture": "x86_64",
        "sockets": 2,
        "physical_cores": 4,
        "threads": 8,
        "cores": 8,
        "flags": ["amx_tile", "avx2", "avx512_vnni", "avx512f", "f16c", "fma"],
    }


def test_a_container_sees_fewer_threads_than_there_are(machine: Any) -> None:
    machine.write("proc/cpuinfo", x86([(0, 0), (0, 1)]))
    machine.write("sys/devices/system/cpu/online", "0-7,16\n")
    found = machine.facts()["cpu"]
    assert (found["threads"], found["cores"]) == (9, 2)


def test_arm_has_its_cores_in_sysfs(machine: Any) -> None:
    machine.write("proc/cpuinfo", arm([(0x41, 0xD4F)] * 4))
    for number, threads in enumerate(("0-1", "0-1", "2", "3")):
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        machine.write(f"{folder}/physical_package_id", "0\n" if number < 2 else "1\n")
        # Cores are numbered anew in each cluster.
        machine.write(f"{folder}/core_id", "0\n")
        machine.write(f"{folder}/{'core_cpus_list' if number else 'thread_siblings_list'}", threads + "\n")
    machine.write("sys/devices/system/cpu/cpufreq/boost", "1")
    found = machine.facts()["cpu"]
    assert (found["model"], found["architecture"]) == ("Neoverse-V2", "aarch64")
    assert (found["sockets"], found["physical_cores"], found["threads"], found["cores"]) == (2, 3, 4, 4)
    assert found["flags"] == ["asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"]


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (arm([(0x41, 0xD87), (0x41, 0xD87), (0x41, 0xD85)]), "Cortex-X925 + Cortex-A725"),
        (arm([(0xC0, 0xAC4)]), "Ampere-1A"),
        (arm([(0x41, 0xD0C), (0x41, 0xFFF)]), "Neoverse-N1"),
        (arm([(0x41, 0xFFF)]), None),
        (arm([(0x41, 0xD0B)]) + "\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n", "Cortex-A76"),
        (arm([(0x99, 0x001)]) + "\nModel\t\t: Some Board\n", "Some Board"),
        ("model name\t: ARMv7 Processor rev 4 (v7l)\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n", "Cortex-A53"),
        ("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n", "POWER9, altivec supported"),
        ("processor\t: 0\nmodel name\t:\n", None),
        ("", None),
    ],
)
def test_model(machine: Any, text: str, model: str | None) -> None:
    machine.write("proc/cpuinfo", text)
    assert machine.facts()["cpu"]["model"] == model


@pytest.mark.parametrize(
    ("isa", "flags"),
    [
        ("rv64imafdcv_zicsr_zvfh", ["rvv", "zvfh"]),
        ("rv64imafdch_zicsr_zifencei", []),
        ("rv64imafdc_sv48_zve64d", []),
    ],
)
def test_riscv(machine: Any, isa: str, flags: list[str]) -> None:
    machine.write("proc/cpuinfo", f"processor\t: 0\nhart\t\t: 0\nisa\t\t: {isa}\n")
    found = machine.facts()["cpu"]
    assert (found["architecture"], found["flags"]) == ("riscv64", flags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 1), ("0-15,32-47", 32), ("0,2,4", 3), ("", None), ("3-1", None), ("0-", None), ("a", None), ("-1", None)],
)
def test_count(text: str, expected: int | None) -> None:
    assert cpu.count(text) == expected
    assert cpu.count(None) is None


def test_recorded_gb10(recorded: Path, tmp_path: Path) -> None:
    with tarfile.open(recorded / "nvidia/hwloc/nvidia-dgx-gb10.tar.bz2") as archive:
        wanted = ("/proc/cpuinfo", "/cpu/online", "/topology/core_cpus_list", "/topology/physical_package_id")
        archive.extractall(tmp_path, [row for row in archive if row.name.endswith(wanted)], filter="data")
    found = cpu.collect(Host(str(tmp_path / "nvidia-dgx-gb10")))
    assert found["model"] == "Cortex-X925 + Cortex-A725"
    assert (found["sockets"], found["physical_cores"], found["threads"]) == (1, 20, 20)
    assert {"asimddp", "bf16", "i8mm", "sve", "sve2"} <= set(found["flags"])


KEYS = [b"processor", b"physical id", b"core id", b"model name", b"flags", b"CPU part", b"CPU implementer", b"isa"]
VALUES = [b"0", b"1", b"-1", b"0x41", b"0xd4f", b"0x", b"99999999999", b"lm avx2", b"rv64imafdcv", b"rv", b"", b"\xff"]
ROWS = st.tuples(st.sampled_from(KEYS), st.sampled_from([b": ", b"\t\t: ", b":", b" "]), st.sampled_from(VALUES))
TEXT = st.one_of(st.binary(max_size=60), st.lists(ROWS.map(b"".join), max_size=12).map(b"\n".join))


@settings(max_examples=200)
@given(TEXT, st.one_of(st.none(), st.binary(max_size=10), st.just(b"0-3")), st.lists(st.binary(max_size=6), max_size=2))
def test_no_content_raises(text: bytes, online: bytes | None, cores: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_bytes(text)
        (root / "sys/devices/system/cpu").mkdir(parents=True)
        if online is not None:
            (root / "sys/devices/system/cpu/online").write_bytes(online)
        for number, content in enumerate(cores):
            place = root / f"sys/devices/system/cpu/cpu{number}/topology"
            place.mkdir(parents=True)
            (place / "core_cpus_list").write_bytes(content)
            (place / "physical_package_id").write_bytes(content)
        found = cpu.collect(Host(folder))
        assert set(json.loads(json.dumps(found))) == set(cpu.UNKNOWN)
        assert all(found[key] is None or found[key] > 0 for key in ("sockets", "physical_cores", "threads", "cores"))
        assert found["model"] != ""
