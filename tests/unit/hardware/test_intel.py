# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import drm, intel, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import INTEGRATED_REASON, Device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st

INTEL = 0x8086
GIB = 1 << 30
NO_LIMITS = dict.fromkeys(("limit_watts", "default_limit_watts", "min_limit_watts", "max_limit_watts"))


def collected(machine: Any, **options: Any) -> tuple[Host, list[Device]]:
    host = Host(str(machine.root), **options)
    devices = pci.collect(host).devices
    drm.collect(host, devices)
    intel.finish(intel.start(host, devices), host, devices)
    return host, devices


@pytest.mark.parametrize(
    ("driver", "files"),
    [
        ("xe", {"tile0/physical_vram_size_bytes": 12 * GIB, "tile1/physical_vram_size_bytes": 12 * GIB}),
        ("i915", {"drm/card1/lmem_total_bytes": 24 * GIB}),
    ],
)
def test_a_card_beside_the_processors_graphics(machine: Any, driver: str, files: dict[str, int]) -> None:
    machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver=driver, render=129, files=files)
    machine.gpu("0000:00:02.0", INTEL, 0x9B41, 0x0300, driver="i915", render=128)
    host, (integrated, discrete) = collected(machine)
    assert (discrete["memory_total_bytes"], discrete["usable"]) == (24 * GIB, True)
    assert (discrete["architecture"], discrete["generation"]) == ("xe2", "battlemage")
    assert not discrete["integrated"] and not discrete["unified_memory"]
    assert integrated["integrated"] and integrated["unified_memory"] and not integrated["usable"]
    assert integrated["unusable_reason"] == INTEGRATED_REASON
    assert (integrated["memory_total_bytes"], integrated["architecture"]) == (None, "gen9")
    assert host.report.probes["intel"]["status"] == "ok"


def test_facts(machine: Any) -> None:
    files = {"tile0/physical_vram_size_bytes": 12 * GIB}
    machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver="xe", render=129, files=files)
    machine.gpu("0000:00:02.0", INTEL, 0x9B41, 0x0300, driver="i915", render=128)
    facts = machine.facts()
    assert (facts["tier"], facts["vendor"], facts["usable_count"]) == ("vulkan", "intel", 1)
    assert (facts["physical_count"], facts["errors"]) == (2, [])


def test_integrated_on_demand(machine: Any) -> None:
    machine.gpu("0000:00:02.0", INTEL, 0x64A0, 0x0300, driver="xe", render=128)
    _, (device,) = collected(machine, integrated=True)
    assert (device["integrated"], device["usable"], device["unusable_reason"]) == (True, True, None)


@pytest.mark.parametrize(
    ("device", "address", "integrated"),
    [
        (0xFF00, "0000:00:02.0", True),
        (0xFF00, "0000:03:00.0", False),
        # In a virtual machine: the table of chips knows better than the address.
        (0xE20B, "0000:00:02.0", False),
        (0x9B41, "0000:05:00.0", True),
    ],
)
def test_integrated(machine: Any, device: int, address: str, integrated: bool) -> None:
    machine.gpu(address, INTEL, device, 0x0300, driver="xe")
    _, (found,) = collected(machine)
    assert found["integrated"] is found["unified_memory"] is integrated
    assert found["usable"] is not integrated


@pytest.mark.parametrize(
    ("driver", "reason"), [(None, "no driver is bound"), ("vfio-pci", "bound to vfio-pci"), ("xe", None)]
)
def test_driver(machine: Any, driver: str | None, reason: str | None) -> None:
    machine.gpu("0000:09:00.0", INTEL, 0x56C0, 0x0380, driver=driver)
    host, (device,) = collected(machine)
    assert (device["unusable_reason"], device["usable"]) == (reason, reason is None)
    assert device["architecture"] == "xe-hpg"
    assert host.report.probes["intel"]["status"] == ("absent" if reason else "ok")


def test_no_intel_gpu(machine: Any) -> None:
    machine.gpu("0000:01:00.0", 0x10DE)
    host, (device,) = collected(machine)
    assert (device["vendor"], host.report.probes["intel"]["status"]) == ("nvidia", "absent")


@pytest.mark.parametrize(
    ("files", "limit", "default"),
    [
        ({"power1_max": 55000000, "power1_rated_max": 0}, 55, None),
        ({"power1_max": 0, "power1_cap": 190000000, "power1_rated_max": 180000000}, 190, 180),
        ({"power2_max": 55500000}, 55.5, None),
        ({"power1_crit": 380000000}, None, None),
    ],
)
def test_power(machine: Any, files: dict[str, int], limit: float | None, default: float | None) -> None:
    sensors = {f"hwmon/hwmon2/{name}": number for name, number in files.items()}
    machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver="xe", files=sensors)
    _, (device,) = collected(machine)
    assert device["power"] == {**NO_LIMITS, "limit_watts": limit, "default_limit_watts": default}


@pytest.mark.parametrize(("wake", "limit"), [(False, None), (True, 190)])
def test_sensors_of_a_sleeping_card_are_left_alone(machine: Any, wake: bool, limit: int | None) -> None:
    files = {"power/runtime_status": "suspended", "hwmon/hwmon2/power1_max": 190000000}
    machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver="xe", files=files)
    _, (device,) = collected(machine, wake=wake)
    assert (device["power"]["limit_watts"], device["usable"]) == (limit, True)


def test_graphics_class_alone(machine: Any) -> None:
    uevent = "DRIVER=i915\nPCI_CLASS=30000\nPCI_ID=8086:56A5\nPCI_SUBSYS_ID=1849:6004\nPCI_SLOT_NAME=0000:0b:00.0\n"
    machine.write("sys/class/drm/card1/device/uevent", uevent)
    machine.write("sys/class/drm/card1/lmem_total_bytes", f"{6 * GIB}\n")
    _, (device,) = collected(machine)
    assert (device["memory_total_bytes"], device["usable"]) == (6 * GIB, True)


def test_a_driver_that_hangs_costs_one_card(machine: Any) -> None:
    """Reading a FIFO without a writer takes for ever, as a file of a driver does whose GPU is gone."""
    hanging = machine.gpu("0000:09:00.0", INTEL, 0xE20B, 0x0300, driver="xe")
    (machine.root / hanging / "tile0").mkdir()
    os.mkfifo(machine.root / hanging / "tile0/physical_vram_size_bytes")
    files = {"tile0/physical_vram_size_bytes": 12 * GIB}
    machine.gpu("0000:0a:00.0", INTEL, 0xE20B, 0x0300, driver="xe", files=files)
    started = time.monotonic()
    host, (first, second) = collected(machine, timeout=1)
    assert time.monotonic() - started < 2
    assert not first["usable"] and first["unusable_reason"].startswith("its driver does not answer")
    assert first["health"] == "error"
    assert (second["usable"], second["memory_total_bytes"]) == (True, 12 * GIB)
    assert host.report.probes["intel"]["status"] == "timeout"


FILES = (
    "tile0/physical_vram_size_bytes",
    "tile1/physical_vram_size_bytes",
    "drm/card0/lmem_total_bytes",
    "hwmon/hwmon0/power1_max",
    "power/runtime_status",
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=30) | st.integers().map(lambda n: str(n).encode())))
def test_garbage_in_the_drivers_files(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "sys/bus/pci/devices/0000:09:00.0"
        for name, data in {"vendor": b"0x8086", "device": b"0xe20b", "class": b"0x030000", **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / "driver").symlink_to("../drivers/xe")
        host = Host(root)
        devices = pci.collect(host).devices
        intel.finish(intel.start(host, devices), host, devices)
        (device,) = devices
        assert device["usable"] and host.report.errors == []
        assert device["memory_total_bytes"] is None or 0 < device["memory_total_bytes"] < 1 << 62
        assert device["power"]["limit_watts"] is None or device["power"]["limit_watts"] > 0
