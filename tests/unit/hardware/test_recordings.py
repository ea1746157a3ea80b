# SPDX-License-Identifier: Apache-2.0
"""Every recorded machine against the table of what its recording shows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_stand_in
import pytest
from recordings import amd_table, nvidia_table, other_tables
from recordings.expected import MIB, Row, Values, at_path, differences

PROJECT = Path(__file__).resolve().parents[3]
ROWS: tuple[Row, ...] = (*nvidia_table.ROWS, *amd_table.ROWS, *other_tables.ROWS)
# Not paths into the facts, but what is checked in a way of its own.
OWN_CHECKS = ("link_groups", "together", "matrix", "numa_of")


def label(row: Any) -> str:
    return str(row.path).rstrip("/").partition("/")[2]


@pytest.fixture(scope="session")
def library() -> Path:
    """The stand-in NVML, compiled."""
    try:
        return nvml_stand_in.build(PROJECT / ".cache")
    except nvml_stand_in.NoCompilerError as problem:
        if os.environ.get("CI"):
            pytest.fail(str(problem))
        pytest.skip(str(problem))


@pytest.fixture
def replay(
    machine: Any, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[Row], dict[str, Any]]:
    """`replay(row)` returns the facts of a recording."""

    def run(row: Row) -> dict[str, Any]:
        options = row.reach(machine, recorded, row)
        shown = options.pop("nvml", None)
        if shown is not None:
            ask_stand_in_nvml(request.getfixturevalue("library"), shown, tmp_path, monkeypatch)
            options["live"] = True
        facts: dict[str, Any] = machine.facts(**options)
        return facts

    return run


def ask_stand_in_nvml(
    library: Path, shown: nvml_stand_in.NvmlMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make NVML this machine, and PATH empty."""
    nvml_stand_in.preload(library)
    description = nvml_stand_in.write_machine(tmp_path / "stand-in-nvml", shown)
    monkeypatch.setenv(nvml_stand_in.MACHINE_VARIABLE, str(description))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def device_differences(expected: Values, found: dict[str, Any], position: int) -> list[str]:
    peers, count = expected.get("link_peers"), expected.get("link_count")
    plain = {path: value for path, value in expected.items() if path not in ("link_peers", "link_count")}
    sentences = differences(plain, found, f"device {position}")
    if count is not None:
        kind, end, number = count
        linked_to = [link for link in found["links"] if (link["type"], link.get("peer_type")) == (kind, end)]
        if sum(link["count"] for link in linked_to) != number:
            sentences.append(f"device {position} links: expected {count}, got {found['links']}")
    if peers is not None:
        linked = sorted(link["peer_bus_id"] or "" for link in found["links"])
        wanted = sorted(f"0000:{int(peer, 16):02x}:00.0" for peer in peers)
        if linked != wanted:
            sentences.append(f"device {position} links: expected peers {wanted}, got {linked}")
    return sentences


def topology_differences(expected: Values, facts: dict[str, Any]) -> list[str]:
    sentences = []
    topology = facts.get("topology") or {"matrix": [], "link_domains": []}
    for kind, groups in expected.get("link_groups", {}).items():
        found = sorted(domain["devices"] for domain in topology["link_domains"] if domain["type"] == kind)
        if found != groups:
            sentences.append(f"{kind} domains: expected {groups}, got {found}")
    if "together" in expected:
        found = sorted(position for domain in topology["link_domains"] for position in domain["devices"])
        if found != expected["together"]:
            sentences.append(f"devices in a domain: expected {expected['together']}, got {found}")
    for (left, right), classes in expected.get("matrix", {}).items():
        for one, other in ((left, right), (right, left)):
            found_class = at_path(topology["matrix"], f"{one}.{other}")
            if found_class not in classes:
                sentences.append(f"link of {one} and {other}: expected one of {classes}, got {found_class!r}")
    if "numa_of" in expected:
        nodes = [device["numa_node"] for device in facts["devices"]]
        if nodes != [int(node) for node in expected["numa_of"]]:
            sentences.append(f"NUMA nodes: expected {expected['numa_of']}, got {nodes}")
    return sentences


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_recording(replay: Callable[[Row], dict[str, Any]], row: Row) -> None:
    facts = replay(row)
    counts: Values = {"vendors": row.vendors, "physical_count": len(row.devices), "usable_count": row.usable}
    sentences = differences({**counts, "driver.mismatch": False}, facts, "facts")
    for vendor in facts["vendors"]:
        indexes = [device["index"] for device in facts["devices"] if device["vendor"] == vendor]
        if indexes != list(range(len(indexes))):
            sentences.append(f"{vendor} indexes: {indexes}")
    sentences += [f"errors: {error}" for error in facts["errors"]]
    for position, (expected, found) in enumerate(zip(row.devices, facts["devices"], strict=False)):
        sentences += device_differences(expected, found, position)
    plain = {path: value for path, value in row.facts.items() if path not in OWN_CHECKS}
    sentences += differences(plain, facts, "facts") + topology_differences(row.facts, facts)
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("row", other_tables.VULKAN, ids=label)
def test_vulkan_recording(machine: Any, recorded: Path, row: other_tables.Drivers) -> None:
    facts = machine.facts(vulkaninfo=str(recorded / row.path))
    sentences = differences({"vendors": row.vendors, "usable_count": row.usable}, facts, "facts")
    listed = facts["vulkan"]["devices"]
    assert len(listed) == len(row.devices), listed
    for position, (expected, device) in enumerate(zip(row.devices, listed, strict=True)):
        sentences += differences(expected, device, f"vulkan device {position}")
    if row.architectures:
        assert facts["physical_count"] == len(row.architectures)
    for position, (architecture, device) in enumerate(zip(row.architectures, facts["devices"], strict=False)):
        sentences += differences({"architecture": architecture}, device, f"device {position}")
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("name", ["phoenix", "vangogh"])
def test_an_integrated_gpu_is_usable_when_it_is_asked_for(machine: Any, recorded: Path, name: str) -> None:
    row = next(row for row in ROWS if row.path == f"amd/sysfs-lact/{name}/")
    row.reach(machine, recorded, row)
    facts = machine.facts(integrated=True)
    assert (facts["physical_count"], facts["usable_count"]) == (1, 1)
    assert facts["devices"][0]["unusable_reason"] is None


def test_the_table_has_every_recording(recorded: Path) -> None:
    rows = [*ROWS, *other_tables.VULKAN]
    known = {path for row in rows for path in (row.path, *getattr(row, "also", ()))} | set(other_tables.LEFT_OUT)
    listed = {line.split("|")[1].strip() for line in (recorded / "INDEX.md").read_text().splitlines()[9:]}
    listed = {path for path in listed if "/" in path}
    files = {str(path.relative_to(recorded)) for path in recorded.rglob("*") if path.is_file()}
    assert len(listed) > 150
    assert sorted(path for path in listed if path not in known) == []
    # The list leaves a few folders out.
    folders = tuple(path for path in known if path.endswith("/"))
    assert sorted(path for path in files if path not in known and not path.startswith(folders)) == []
    assert sorted(path for path in known if not (recorded / path).exists()) == []
    paths = [row.path for row in rows]
    assert sorted(path for path in set(paths) if paths.count(path) > 1) == []


@pytest.mark.parametrize("row", [row for row in nvidia_table.TEXTS if row.also], ids=label)
def test_the_table_agrees_with_the_other_tools_of_the_machine(recorded: Path, row: Row) -> None:
    """nvidia-smi's table has the sizes, CUDA's deviceQuery the compute capabilities."""
    table, query = ((recorded / path).read_text() for path in row.also)
    sizes = [int(size) * MIB for size in re.findall(r"MiB / +(\d+)MiB \|", table)]
    assert sizes == [device["memory_total_bytes"] for device in row.devices]
    buses = [f"0000:{bus}" for bus in re.findall(r"00000000:([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.0)", table)]
    assert [bus.lower() for bus in buses] == [device["pci_bus_id"] for device in row.devices]
    capabilities = re.findall(r"CUDA Capability Major/Minor version number: +(\S+)", query)
    assert capabilities == [device["architecture"] for device in row.devices]
    assert re.findall(r'Device \d+: "(.*)"', query) == [device["name"] for device in row.devices]
    # CUDA leaves out what the driver keeps for itself.
    seen = [int(size) for size in re.findall(r"\((\d+) bytes\)\n", query)]
    assert all(0.9 * size < cuda < size for size, cuda in zip(sizes, seen[: len(sizes)], strict=True))


# Stand-in executables


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, output: Path, code: int) -> None:
    """Put a program on PATH that prints a recorded output and ends with the recorded code; nothing else is there."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    program = folder / name
    program.write_text(f"#!/bin/sh\n/bin/cat '{output}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("name", ["k8sti-h100.xml", "telegraf-a100-sxm4-v12.xml"])
def test_a_recorded_document_of_the_tool_itself(
    machine: Any, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As through the option, beside the PCI bus that the machine would have."""
    row = next(row for row in nvidia_table.DOCUMENTS if row.path.endswith(name))
    machine.nvidia_driver(str(row.facts["driver.version"]))
    for device in row.devices:
        machine.gpu(device["pci_bus_id"], 0x10DE, int(device["pci.device_id"], 16), driver="nvidia")
    stand_in(tmp_path, monkeypatch, "nvidia-smi", recorded / row.path, 0)
    facts = machine.facts(live=True)
    assert (facts["probes"]["nvml"]["status"], facts["probes"]["nvidia_smi"]["status"]) == ("absent", "ok")
    counts: Values = {"physical_count": len(row.devices), "usable_count": row.usable, **row.facts}
    sentences = differences(counts, facts, "facts")
    for position, (expected, found) in enumerate(zip(row.devices, facts["devices"], strict=True)):
        sentences += device_differences(expected, found, position)
    assert not sentences, "\n".join(sentences)


def failure(recorded: Path, name: str) -> dict[str, Any]:
    """One recorded failure of a tool."""
    records = json.loads((recorded / "nvidia/errors/errors.json").read_text())
    found: dict[str, Any] = next(record for record in records if record["id"] == name)
    return found


# What nvidia-smi says in place of its list, and what the facts must still say: of the GPU that it names, and of all.
FAILURES: dict[str, Values] = {
    "mismatch-535": {"driver.mismatch": True, "driver.library_version": "535.161", "reason": "mismatch"},
    "mismatch-550": {"driver.mismatch": True, "driver.library_version": "550.144", "reason": "mismatch"},
    "mismatch-570": {"driver.mismatch": True, "driver.library_version": "570.124", "reason": "mismatch"},
    "mismatch-old": {"driver.mismatch": True, "driver.library_version": None, "reason": "mismatch"},
    "driver-not-loaded": {"reason": "couldn't communicate with the nvidia driver"},
    "no-devices": {"reason": "no devices were found"},
    "gpu-lost": {"bad": "0000:02:00.0", "reason": "lost"},
    "gpu-lost-indexed": {"bad": "0000:01:00.0", "reason": "lost"},
    "handle-unknown": {"bad": "0000:17:00.0", "reason": "unknown error"},
    "handle-unknown-spaced": {"bad": "0000:0b:00.0", "reason": "unknown error"},
    "nvml-unknown-error-container": {"reason": "unknown error"},
    "wsl-no-lib": {"reason": "libnvidia-ml"},
    "csv-unknown-field": {"reason": None},
}
# The module that is loaded where the library is another one.
LOADED = {
    "mismatch-535": "535.154.05",
    "mismatch-550": "550.120",
    "mismatch-570": "570.133.07",
    "mismatch-old": "460.91.03",
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_recorded_failure_of_nvidia_smi(
    machine: Any, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    record, expected = failure(recorded, name), dict(FAILURES[name])
    reason, bad = expected.pop("reason"), expected.pop("bad", "0000:01:00.0")
    healthy = "0000:c1:00.0"
    machine.gpu(bad, 0x10DE, 0x2204, driver="nvidia")
    machine.gpu(healthy, 0x10DE, 0x2204, driver="nvidia")
    module = LOADED.get(name, "550.54.14")
    machine.write("proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {module}  Release\n")
    output = machine.write("output.txt", record["output"])
    code = record["rc"] if record["rc"] is not None else 255
    stand_in(tmp_path, monkeypatch, "nvidia-smi", output, code)
    facts = machine.facts(live=True)
    assert differences({"vendors": ["nvidia"], "physical_count": 2, "usable_count": 0, **expected}, facts, "") == []
    assert (facts["probes"]["nvidia_smi"]["status"], facts["driver"]["kernel_module_version"]) == ("error", module)
    first, second = facts["devices"]
    assert [first["pci_bus_id"], second["pci_bus_id"]] == [bad, healthy]
    for device in (first, second):
        assert device["architecture"] == "8.6"
        assert device["memory_total_bytes"] is None
        assert device["usable"] is False
        assert device["unusable_reason"]
    if reason is not None:
        assert reason in first["unusable_reason"].lower()
    if reason == "lost":
        assert (first["health"], second["health"]) == ("lost", None)


def test_a_recorded_lost_gpu_of_nvml(
    machine: Any, recorded: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML gives no handle of it; the seven others stay."""
    assert "GPU is lost" in failure(recorded, "nvml-py-gpu-lost")["output"]
    shown = nvml_stand_in.lost_among_eight(3)
    for gpu in shown.gpus:
        machine.gpu(gpu.bus_id, 0x10DE, 0x2330, driver="nvidia")
    machine.nvidia_driver(str(shown.driver_version))
    ask_stand_in_nvml(library, shown, tmp_path, monkeypatch)
    facts = machine.facts(live=True)
    assert (facts["physical_count"], facts["usable_count"]) == (8, 7)
    lost = facts["devices"][3]
    assert (lost["health"], lost["usable"], lost["memory_total_bytes"]) == ("lost", False, None)
    assert "lost" in lost["unusable_reason"].lower()
    assert [device["usable"] for device in facts["devices"]].count(True) == 7


def test_a_recorded_failure_to_start_nvml(
    machine: Any, recorded: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WSL with another NVML than its own."""
    code = failure(recorded, "wsl-nvml-9")["rc"]
    machine.write("dev/dxg", "")
    ask_stand_in_nvml(library, nvml_stand_in.NvmlMachine(init=nvml_stand_in.Error(code)), tmp_path, monkeypatch)
    facts = machine.facts(live=True)
    assert (facts["physical_count"], facts["usable_count"]) == (0, 0)
    probe = facts["probes"]["nvml"]
    assert (probe["status"], "driver not loaded" in (probe["message"] or "").lower()) == ("error", True), probe


@pytest.mark.parametrize("name", ["rocm-smi-bad-read", "rocm-smi-nojson", "rocm-lowpower"])
def test_a_recorded_failure_of_rocm_smi(machine: Any, recorded: Path, name: str) -> None:
    """What the kernel shows stays."""
    files = {"mem_info_vram_total": 16 << 30, "mem_info_vram_vendor": "samsung"}
    machine.gpu("0000:03:00.0", 0x1002, 0x747E, 0x0300, driver="amdgpu", render=128, files=files)
    output = machine.write("output.txt", failure(recorded, name)["output"])
    facts = machine.facts(amd_smi_json=str(output))
    (device,) = facts["devices"]
    assert (device["usable"], device["memory_total_bytes"], device["architecture"]) == (True, 16 << 30, "gfx1101")
    statuses = [facts["probes"][probe]["status"] for probe in ("amd_smi", "rocm_smi") if probe in facts["probes"]]
    assert "error" in statuses


def test_every_recorded_failure_is_replayed(recorded: Path) -> None:
    records = json.loads((recorded / "nvidia/errors/errors.json").read_text())
    replayed = {*FAILURES, "rocm-smi-bad-read", "rocm-smi-nojson", "rocm-lowpower", "nvml-py-gpu-lost", "wsl-nvml-9"}
    assert {record["id"] for record in records} == replayed
