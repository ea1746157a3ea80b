# SPDX-License-Identifier: Apache-2.0
"""What a node gets for the GPUs that only Vulkan can use."""

from __future__ import annotations

from typing import Any

import pytest
from amd_machines import GIB, SYSTEMS, TABLE, add_packages, amd_gpu, intel_gpu, machine
from ansible_collections.fleet.inference.plugins.module_utils.drivers import vulkan
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError

DEFAULTS = {"vulkan_state": "present", "vulkan_tools": True}
DEBIANS = [name for name in SYSTEMS if not name.startswith("rhel")]


def plan(facts: dict[str, Any], **wish: Any) -> dict[str, Any]:
    """The decision for gpu-07."""
    return vulkan.plan("gpu-07", facts, {**DEFAULTS, **wish}, TABLE)


def refusal(facts: dict[str, Any], **wish: Any) -> str:
    """Why there is none."""
    with pytest.raises(DriverError) as caught:
        plan(facts, **wish)
    return str(caught.value)


def steps(decision: dict[str, Any]) -> list[str]:
    """What is left to do."""
    return [name for name, there in decision["steps"].items() if there]


def wanted(system: str, vendor: str) -> list[str]:
    """All packages for a vendor's GPU."""
    entry = TABLE["vulkan"]["systems"][system]
    return [*entry["packages"], *entry["tools"], *entry["firmware"].get(vendor, [])]


def test_without_facts_it_says_how_to_get_them() -> None:
    assert refusal({}).startswith("gpu-07: vulkan_facts is empty because nothing has read this host's facts")


@pytest.mark.parametrize("device", [amd_gpu("gfx803"), intel_gpu()], ids=["Polaris", "Arc"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_mesa_tools_and_firmware(system: str, device: dict[str, Any]) -> None:
    decision = plan(machine(system, device))
    assert decision["needed"]
    assert decision["packages"]["install"] == wanted(system, device["vendor"])
    assert steps(decision) == ["install"]


@pytest.mark.parametrize("system", DEBIANS)
def test_a_node_that_has_it_is_left_alone(system: str) -> None:
    facts = machine(system, amd_gpu("gfx803"))
    add_packages(facts, *wanted(system, "amd"))
    decision = plan(facts)
    assert steps(decision) == []
    assert not decision["reboot"]["required"]


def test_rhel_is_asked_what_vulkaninfo_said() -> None:
    facts = machine("rhel 9", intel_gpu())
    facts["vulkan"] = {"devices": [{"name": "Intel Arc B580"}]}
    assert steps(plan(facts)) == []


def test_both_vendors() -> None:
    install = plan(machine("debian 13", amd_gpu("gfx803"), intel_gpu()))["packages"]["install"]
    assert install[-2:] == ["firmware-amd-graphics", "firmware-intel-graphics"]


def test_without_tools() -> None:
    assert "vulkan-tools" not in plan(machine("debian 13", intel_gpu()), vulkan_tools=False)["packages"]["install"]


@pytest.mark.parametrize(
    "devices",
    [
        (),
        (amd_gpu("gfx942"),),
        (amd_gpu("gfx1103"),),
        (intel_gpu(driver_bound="vfio-pci"),),
        (intel_gpu(vendor="nvidia", driver_bound="nvidia"),),
    ],
    ids=["none", "ROCm", "only shows the console", "given to a virtual machine", "NVIDIA"],
)
def test_nothing_for_others(devices: tuple[dict[str, Any], ...]) -> None:
    decision = plan(machine("debian 13", *devices))
    assert not decision["needed"]
    assert steps(decision) == []


def test_an_integrated_gpu_counts_where_services_may_use_it() -> None:
    assert plan(machine("debian 13", amd_gpu("gfx1103", usable=True)))["needed"]


def test_missing_groups_are_made() -> None:
    facts = machine("debian 13", intel_gpu())
    facts["groups"]["render"] = None
    assert "groups" in steps(plan(facts))


def test_a_gpu_without_a_driver_waits_for_a_restart() -> None:
    facts = machine("debian 13", intel_gpu(driver_bound=None))
    add_packages(facts, *wanted("debian 13", "intel"))
    assert "no driver has Intel Arc B580" in plan(facts)["reboot"]["reason"]


def test_a_kernel_without_amdgpu_is_refused() -> None:
    facts = machine("debian 12", amd_gpu("gfx803", driver_bound=None))
    facts["boot"]["kernels"][0]["modules"] = {}
    assert refusal(facts) == (
        "gpu-07: vulkan_state is 'present' but the kernel 6.1.0-40-amd64 has no amdgpu driver for Radeon RX 580; "
        "install linux-image-amd64, or set vulkan_state to 'absent'"
    )


def test_radeon_has_no_vulkan() -> None:
    decision = plan(machine("debian 13", amd_gpu("gfx803", driver_bound="radeon")))
    assert "radeon, which has no Vulkan" in " ".join(decision["decisions"])


def test_a_full_disk_is_refused() -> None:
    facts = machine("debian 13", intel_gpu(), free_bytes={"/": GIB // 8, "/boot": GIB, "/var": GIB})
    assert refusal(facts).startswith("gpu-07: / has 128 MiB free")


def test_an_unknown_system_is_refused_and_left_alone_when_nothing_is_wanted() -> None:
    facts = machine("debian 13", intel_gpu())
    facts["os"]["version_id"] = "11"
    assert refusal(facts).startswith("gpu-07: vulkan can't set up Mesa on debian 11; use one of debian 12")
    assert steps(plan(facts, vulkan_state="absent")) == []


def test_absent_takes_mesa_away_and_leaves_the_firmware() -> None:
    facts = machine("debian 13", intel_gpu())
    add_packages(facts, *wanted("debian 13", "intel"))
    decision = plan(facts, vulkan_state="absent")
    assert decision["packages"]["install"] == []
    assert decision["packages"]["remove"] == ["libvulkan1", "mesa-vulkan-drivers", "vulkan-tools"]
    assert steps(decision) == ["remove"]


def test_half_configured_packages_are_repaired() -> None:
    facts = machine("debian 13", intel_gpu())
    add_packages(facts, *wanted("debian 13", "intel"))
    facts["packages"]["mesa-vulkan-drivers"]["state"] = "half-configured"
    assert steps(plan(facts)) == ["repair", "install"]
