# SPDX-License-Identifier: Apache-2.0
"""Vulkan on a node: Mesa answers, and the devices' groups are there. The one device here is Mesa's own, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]


def test_vulkaninfo_sees_mesas_software_device(host: Any) -> None:
    summary = host.check_output("vulkaninfo --summary")
    assert "llvmpipe" in summary
    assert "driverName         = llvmpipe" in summary


def test_mesa_has_the_drivers_of_amd_and_intel(host: Any) -> None:
    names = host.check_output("ls /usr/share/vulkan/icd.d").split()
    assert any(name.startswith("radeon_icd") for name in names)
    assert any(name.startswith("intel_icd") for name in names)


@pytest.mark.parametrize("name", ["libvulkan1", "mesa-vulkan-drivers", "vulkan-tools"])
def test_packages(host: Any, name: str) -> None:
    assert host.package(name).is_installed


def test_firmware_comes_from_a_section_that_the_node_did_not_have(host: Any, variables: dict[str, Any]) -> None:
    assert host.package(variables["expected_firmware"]).is_installed
    added = host.file("/etc/apt/sources.list.d/inference-fleet-vulkan-components.sources")
    assert "Components: non-free-firmware" in added.content_string


def test_pitfall_26_the_devices_groups_have_numbers(host: Any) -> None:
    for name in ("render", "video"):
        assert host.group(name).exists
        assert host.group(name).gid


def test_no_package_is_half_configured(host: Any) -> None:
    states = host.check_output("dpkg-query --show --showformat='${db:Status-Status}\\n'").split()
    assert set(states) <= {"installed", "config-files"}
