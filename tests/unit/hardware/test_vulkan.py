# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import vulkan
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import (
    INTEGRATED_REASON,
    Device,
    new_device,
)
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30
INTEL_UUID = "86800be2-0000-0000-0900-000000000000"


def gpu(number: int, name: str, **fields: str) -> str:
    """A GPU as `vulkaninfo --summary` prints it."""
    lines = [f"GPU{number}:", *(f"\t{key:18} = {value}" for key, value in fields.items()), f"\tdeviceName = {name}"]
    return "\n".join(lines) + "\n"


def summary(*gpus: str) -> str:
    return "==========\nVULKANINFO\n==========\n\nVulkan Instance Version: 1.3.296\n\nDevices:\n========\n" + "".join(
        gpus
    )


def heaps(*sizes: tuple[int, bool]) -> str:
    text = f"VkPhysicalDeviceMemoryProperties:\n=================================\nmemoryHeaps: count = {len(sizes)}\n"
    for number, (size, local) in enumerate(sizes):
        flag = "MEMORY_HEAP_DEVICE_LOCAL_BIT" if local else "None"
        text += f"\tmemoryHeaps[{number}]:\n\t\tsize   = {size} ({size:#x}) (1.00 GiB)\n\t\tbudget = 1 (0x1) (1.00 B)\n"
        text += f"\t\tflags: count = 1\n\t\t\t{flag}\n"
    return text + "memoryTypes: count = 1\n\tmemoryTypes[0]:\n\t\theapIndex = 0\n"


def full(number: int, name: str, kind: str, ids: tuple[int, int], bus: int, *sizes: tuple[int, bool]) -> str:
    """A GPU as `vulkaninfo` prints it, in the parts that are read."""
    return (
        f"GPU{number}:\nVkPhysicalDeviceProperties:\n---------------------------\n"
        f"\tapiVersion        = 1.3.289 (4206881)\n\tdriverVersion     = 24.2.8 (100671496)\n"
        f"\tvendorID          = {ids[0]:#06x}\n\tdeviceID          = {ids[1]:#06x}\n"
        f"\tdeviceType        = PHYSICAL_DEVICE_TYPE_{kind}\n\tdeviceName        = {name}\n\n"
        f"VkPhysicalDeviceDriverProperties:\n---------------------------------\n"
        f"\tdriverID           = DRIVER_ID_MESA\n\tdriverName         = mesa\n\tdriverInfo         = Mesa 24.2.8\n\n"
        f"VkPhysicalDevicePCIBusInfoPropertiesEXT:\n----------------------------------------\n"
        f"\tpciDomain   = 0\n\tpciBus      = {bus}\n\tpciDevice   = 0\n\tpciFunction = 0\n\n"
    ) + heaps(*sizes)


def collected(text: str, devices: list[Device], **options: Any) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as root:
        place = Path(root) / "vulkaninfo.txt"
        place.write_text(text)
        host = Host(root, **options)
        found = vulkan.finish(vulkan.start(host, devices, str(place)), host, devices)
        assert host.report.probes["vulkaninfo"]["status"] == ("error" if found is None else "ok")
        return found


RADEON = {
    "apiVersion": "1.3.289",
    "vendorID": "0x1002",
    "deviceID": "0x73ff",
    "deviceType": "PHYSICAL_DEVICE_TYPE_DISCRETE_GPU",
    "driverName": "radv",
    "driverInfo": "Mesa 24.2.8",
}
ARC = {**RADEON, "vendorID": "0x8086", "deviceID": "0xe20b", "driverName": "Intel open-source Mesa driver"}
UUIDS = ("00000000-0a00-0000-0000-000000000000", "00000000-4300-0000-0000-000000000000")


def test_summary() -> None:
    version, (found,) = vulkan.parse(summary(gpu(0, "AMD Radeon RX 6600 (RADV NAVI23)", **RADEON, deviceUUID=UUIDS[0])))
    assert version == "1.3.296"
    assert found == {
        "name": "AMD Radeon RX 6600 (RADV NAVI23)",
        "type": "discrete",
        "vendor_id": "1002",
        "device_id": "73ff",
        "driver": "radv Mesa 24.2.8",
        "api_version": "1.3.289",
        "uuid": UUIDS[0],
        "pci_bus_id": "0000:0a:00.0",
        "vendor": "amd",
        "memory_bytes": None,
    }


def test_full_text() -> None:
    """A GPU that is listed in short first, and again with all its properties, is one."""
    name = "Intel(R) Arc(tm) B580 Graphics (BMG G21)"
    text = summary(gpu(0, name, **ARC), gpu(1, "llvmpipe (LLVM 19.1.7)"))
    text += "\nDevice Properties and Extensions:\n=================================\n"
    text += full(0, name, "DISCRETE_GPU", (0x8086, 0xE20B), 9, (12 * GIB, True), (9, False))
    text += full(1, "llvmpipe (LLVM 19.1.7)", "CPU", (0x10005, 0), 0, (GIB, True))
    _, (found,) = vulkan.parse(text)
    assert (found["pci_bus_id"], found["memory_bytes"], found["type"]) == ("0000:09:00.0", 12 * GIB, "discrete")


def test_old_text() -> None:
    """Before 2020: no colon behind the number, the version as a number first, the type without its first words."""
    text = "Device Properties and Extensions :\n=====\nGPU0\nVkPhysicalDeviceProperties:\n"
    text += "\tapiVersion     = 0x401046  (1.1.70)\n\tvendorID       = 0x1002\n\tdeviceID       = 0x67df\n"
    text += "\tdeviceType     = DISCRETE_GPU\n\tdeviceName     = AMD RADV POLARIS10 (LLVM 7.0.0)\n"
    _, (found,) = vulkan.parse(text)
    assert (found["api_version"], found["type"], found["device_id"]) == ("1.1.70", "discrete", "67df")
    assert found["name"] == "AMD RADV POLARIS10"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llvmpipe (LLVM 19.1.7, 256 bits)", "PHYSICAL_DEVICE_TYPE_CPU"),
        ("llvmpipe (LLVM 11.0.1, 256 bits)", ""),
        ("SwiftShader Device (LLVM 10.0.0)", ""),
        ("lavapipe", "PHYSICAL_DEVICE_TYPE_OTHER"),
        ("a processor of the future", "PHYSICAL_DEVICE_TYPE_CPU"),
    ],
)
def test_software_is_left_out(name: str, kind: str) -> None:
    found = collected(summary(gpu(0, name, deviceType=kind)), [])
    assert found == {"version": "1.3.296", "devices": []}


def test_two_drivers_of_one_card() -> None:
    """Mesa's and AMD's drivers both list the first of two equal cards."""
    amdvlk = {**RADEON, "driverName": "AMD proprietary driver", "driverInfo": "2025.Q1"}
    text = summary(
        gpu(0, "AMD Radeon RX 6600 (RADV NAVI23)", **RADEON, deviceUUID=UUIDS[0]),
        gpu(1, "AMD Radeon RX 6600 (RADV NAVI23)", **RADEON, deviceUUID=UUIDS[1]),
        gpu(2, "AMD Radeon RX 6600", **amdvlk, deviceUUID=UUIDS[0]),
    )
    devices: list[Device] = []
    found = collected(text, devices)
    assert found is not None and [one["uuid"] for one in found["devices"]] == list(UUIDS)
    assert [device["pci_bus_id"] for device in devices] == ["0000:0a:00.0", "0000:43:00.0"]


@pytest.mark.parametrize(("second", "count"), [("Mesa 24.2.8", 2), ("Mesa 22.0.2", 1)])
def test_without_uuids_the_driver_decides(second: str, count: int) -> None:
    text = gpu(0, "AMD RADV NAVY_FLOUNDER (ACO)", driverInfo="Mesa 24.2.8")
    text += gpu(1, "AMD RADV NAVY_FLOUNDER", driverInfo=second)
    devices: list[Device] = []
    assert collected(text, devices) is not None
    assert [device["vendor"] for device in devices] == ["amd"] * count


def on_bus(vendor: str, address: str, vendor_id: str, device_id: str, **known: Any) -> Device:
    ids = {"vendor_id": vendor_id, "device_id": device_id}
    return new_device(vendor, address, pci=ids, usable=True, **known)


def test_known_cards_by_address() -> None:
    """Listed in the other order than the bus."""
    devices = [on_bus("amd", f"0000:{bus}:00.0", "1002", "73ff") for bus in ("0a", "43")]
    text = summary(
        gpu(0, "the upper", **RADEON, deviceUUID=UUIDS[1]), gpu(1, "the lower", **RADEON, deviceUUID=UUIDS[0])
    )
    collected(text, devices)
    assert [device["vulkan"]["name"] for device in devices] == ["the lower", "the upper"]
    assert devices[0]["vulkan"] == {"name": "the lower", "driver": "radv Mesa 24.2.8", "api_version": "1.3.289"}


def test_known_cards_by_intels_uuid_and_ids() -> None:
    devices = [on_bus("intel", f"0000:{bus}:00.0", "8086", "e20b") for bus in ("09", "0c")]
    devices.append(on_bus("intel", "0000:00:02.0", "8086", "9b41", unified_memory=True))
    text = summary(
        gpu(0, "integrated", **{**ARC, "deviceID": "0x9b41"}),
        # What older drivers print is a hash.
        gpu(1, "second", **ARC, deviceUUID="5f1c6b1e-b5d4-3a0c-9e7f-2a1b3c4d5e6f"),
        gpu(2, "first", **ARC, deviceUUID=INTEL_UUID),
    )
    found = collected(text, devices)
    assert [device["vulkan"]["name"] for device in devices] == ["first", "second", "integrated"]
    assert found is not None
    assert [one["pci_bus_id"] for one in found["devices"]] == ["0000:00:02.0", "0000:0c:00.0", "0000:09:00.0"]


def test_nvidias_uuid_is_the_gpus() -> None:
    uuid = "5078ccdd-6989-8a46-81c4-d7ffe7ea6c14"
    devices = [new_device("nvidia", f"0000:0{bus}:00.0", uuid=f"GPU-{bus}") for bus in (1, 2)]
    devices[1]["uuid"] = f"GPU-{uuid}"
    collected(
        summary(gpu(0, "NVIDIA GeForce RTX 3090", vendorID="0x10de", deviceID="0x2204", deviceUUID=uuid)), devices
    )
    assert [device["vulkan"] is not None for device in devices] == [False, True]


def test_a_driver_of_its_own_mind_adds_no_card() -> None:
    """Two names for one card, neither with a UUID: the kernel lists one, so there is one."""
    devices = [on_bus("amd", "0000:0a:00.0", "1002", "73ff")]
    text = gpu(0, "AMD RADV NAVI23", vendorID="0x1002") + gpu(1, "AMD Radeon RX 6600", vendorID="0x1002")
    collected(text, devices)
    assert len(devices) == 1


@pytest.mark.parametrize(
    ("vendor", "device", "sizes", "memory"),
    [
        # Intel and AMD list what the host does not see beside what it sees, NVIDIA the latter once more.
        (0x8086, 0xE20B, ((8 * GIB, True), (16 * GIB, False), (4 * GIB, True)), 12 * GIB),
        (0x10DE, 0x2204, ((24 * GIB, True), (16 * GIB, False), (GIB // 4, True)), 24 * GIB),
        (0x1002, 0x73FF, ((0, True),), None),
    ],
)
def test_memory(vendor: int, device: int, sizes: tuple[tuple[int, bool], ...], memory: int | None) -> None:
    devices: list[Device] = []
    collected(full(0, "a card", "DISCRETE_GPU", (vendor, device), 9, *sizes), devices)
    assert devices[0]["memory_total_bytes"] == memory


def test_memory_that_is_known_stays() -> None:
    devices = [
        on_bus("intel", "0000:09:00.0", "8086", "e20b", memory_total_bytes=11 * GIB),
        on_bus("intel", "0000:00:02.0", "8086", "9b41", unified_memory=True),
    ]
    text = full(0, "card", "DISCRETE_GPU", (0x8086, 0xE20B), 9, (12 * GIB, True))
    text += gpu(1, "inside", vendorID="0x8086", deviceID="0x9b41") + heaps((48 * GIB, True))
    collected(text, devices)
    assert [device["memory_total_bytes"] for device in devices] == [11 * GIB, None]


@pytest.mark.parametrize(
    ("name", "fields", "vendor", "integrated"),
    [
        ("Adreno X1-85", {"vendorID": "0x5143", "deviceType": "PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU"}, "qualcomm", True),
        ("Mali-G610", {"vendorID": "0x13b5"}, "arm", True),
        ("V3D 7.1.7", {"vendorID": "0x14e4"}, "broadcom", True),
        ("PowerVR B-Series", {"vendorID": "0x1010"}, "imagination", True),
        ("Apple M1 (G13G B1)", {"vendorID": "0x10005"}, "apple", True),
        ("NVIDIA GeForce GTX 1650", {}, "nvidia", False),
        ("AMD RADV NAVI10", {}, "amd", False),
        ("Intel(R) UHD Graphics", {"deviceType": "INTEGRATED_GPU"}, "intel", True),
        (
            "Moore Threads S80",
            {"vendorID": "0x1ed5", "deviceType": "PHYSICAL_DEVICE_TYPE_DISCRETE_GPU"},
            "other",
            False,
        ),
    ],
)
def test_cards_of_other_vendors(name: str, fields: dict[str, str], vendor: str, integrated: bool) -> None:
    for asked in (False, True):
        devices: list[Device] = []
        collected(gpu(0, name, **fields), devices, integrated=asked)
        (device,) = devices
        assert (device["vendor"], device["name"], device["integrated"]) == (vendor, name, integrated)
        assert device["unified_memory"] is integrated
        assert device["usable"] is (asked or not integrated)
        assert device["unusable_reason"] == (INTEGRATED_REASON if integrated and not asked else None)


def test_a_card_by_its_pci_id() -> None:
    devices: list[Device] = []
    collected(gpu(0, "AMD Radeon RX 6600", **RADEON), devices)
    (device,) = devices
    assert (device["architecture"], device["generation"], device["pci"]["device_id"]) == ("gfx1032", "rdna2", "73ff")


@pytest.mark.parametrize("text", ["", "Segmentation fault", "Devices:\n", "{}"])
def test_no_output_of_vulkaninfo(text: str) -> None:
    assert collected(text, []) is None


def test_a_missing_file(machine: Any) -> None:
    host = Host(str(machine.root))
    assert vulkan.finish(vulkan.start(host, [], str(machine.root / "missing")), host, []) is None
    assert host.report.probes["vulkaninfo"]["status"] == "error"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0) -> Path:
    """Put a stand-in for vulkaninfo on PATH; the file that is returned is there once it was run."""
    program, ran = folder / "bin/vulkaninfo", folder / "ran"
    program.parent.mkdir(exist_ok=True)
    (folder / "output").write_text(text)
    program.write_text(f"#!/bin/sh\necho run >> {ran}\ncat {folder / 'output'}\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return ran


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trace of a stand-in for vulkaninfo that knows no GPU."""
    return stand_in(tmp_path, monkeypatch, summary())


def run(machine: Any, devices: list[Device], **options: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    host = Host(str(machine.root), live=True, **options)
    found = vulkan.finish(vulkan.start(host, devices), host, devices)
    return found, host.report.probes["vulkaninfo"]


def test_the_program_is_run(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = stand_in(tmp_path, monkeypatch, summary(gpu(0, "card", **ARC, deviceUUID=INTEL_UUID)))
    devices = [on_bus("intel", "0000:09:00.0", "8086", "e20b")]
    found, probe = run(machine, devices)
    assert ran.read_text() == "run\n" and probe["status"] == "ok"
    assert found is not None and devices[0]["vulkan"]["name"] == "card"


def test_what_it_printed_before_it_crashed_counts(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, summary(gpu(0, "card", **ARC)), code=139)
    devices = [on_bus("intel", "0000:09:00.0", "8086", "e20b")]
    found, probe = run(machine, devices)
    assert probe["status"] == "error" and found is not None and devices[0]["vulkan"]["name"] == "card"


def test_no_driver_for_any_gpu(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "ERROR at vulkaninfo.h:247: vkCreateInstance ERROR_INCOMPATIBLE_DRIVER\n", code=1)
    found, probe = run(machine, [on_bus("amd", "0000:09:00.0", "1002", "73ff")])
    assert (found, probe["status"]) == (None, "absent")


@pytest.mark.parametrize(
    ("device", "node", "wake", "asked"),
    [
        (("amd", "active"), False, False, True),
        (("intel", None), False, False, True),
        (("nvidia", "active"), True, False, False),
        (("amd", "suspended"), False, False, False),
        (("amd", "suspended"), False, True, True),
        (None, True, False, True),
        (None, False, False, False),
    ],
)
def test_when_it_is_asked(
    machine: Any, ran: Path, *, device: tuple[str, str | None] | None, node: bool, wake: bool, asked: bool
) -> None:
    if node:
        machine.write("dev/dri/renderD128", "")
    devices = [new_device(device[0], "0000:09:00.0", power_state=device[1])] if device else []
    _, probe = run(machine, devices, wake=wake)
    assert ran.exists() is asked
    assert probe["status"] == ("ok" if asked else "absent")


def test_an_nvidia_gpu_that_sleeps_keeps_it_from_being_asked(machine: Any, ran: Path) -> None:
    devices = [new_device("amd", "0000:03:00.0"), new_device("nvidia", "0000:01:00.0", power_state="suspended")]
    _, probe = run(machine, devices)
    assert not ran.exists() and "asleep" in probe["message"]


def test_a_recorded_tree_runs_nothing(machine: Any, ran: Path) -> None:
    machine.gpu("0000:09:00.0", 0x8086, 0xE20B, 0x0300, driver="xe")
    facts = machine.facts()
    assert not ran.exists() and facts["vulkan"] is None and facts["probes"]["vulkaninfo"]["status"] == "absent"


SAMPLE = summary(gpu(0, "AMD Radeon RX 6600", **RADEON, deviceUUID=UUIDS[0])) + full(
    1, "Arc", "DISCRETE_GPU", (0x8086, 0xE20B), 9, (12 * GIB, True), (GIB, False)
)
VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.sampled_from(["0x", "-1", "9" * 5000, UUIDS[1]]))


def check(text: str) -> None:
    devices = [on_bus("amd", "0000:0a:00.0", "1002", "73ff"), new_device("intel", "0000:09:00.0")]
    with tempfile.TemporaryDirectory() as root:
        host = Host(root)
        found = vulkan.finish(vulkan.Pending(text=text, path="recorded"), host, devices)
        assert found is not None or host.report.errors
        for device in devices:
            assert device["memory_total_bytes"] is None or 0 < device["memory_total_bytes"] < 1 << 62


@settings(max_examples=150)
@given(st.integers(0, len(SAMPLE)), st.integers(0, len(SAMPLE)), st.text(max_size=20))
def test_damaged_output(start: int, end: int, replacement: str) -> None:
    check(SAMPLE[:start] + replacement + SAMPLE[end:])


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(sorted(vulkan.FIELDS)), VALUES), VALUES)
def test_any_values(fields: dict[str, str], size: str) -> None:
    block = "".join(f"\t{key} = {value}\n" for key, value in fields.items())
    check(f"GPU0:\n{block}memoryHeaps[0]:\n\tsize = {size}\n\tMEMORY_HEAP_DEVICE_LOCAL_BIT\n")
