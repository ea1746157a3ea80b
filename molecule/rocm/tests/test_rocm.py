# SPDX-License-Identifier: Apache-2.0
"""AMD's driver on gpu-01, built by DKMS for the kernel that starts next, and the kernel's own driver on gpu-02."""

from __future__ import annotations

from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]


@pytest.fixture
def vendor(variables: dict[str, Any]) -> None:
    """Only for the node with AMD's driver."""
    if variables.get("rocm_source") != "vendor":
        pytest.skip("the kernel's own driver")


@pytest.fixture
def inbox(variables: dict[str, Any]) -> None:
    """Only for the node with the kernel's own driver."""
    if variables.get("rocm_source") == "vendor":
        pytest.skip("AMD's driver")


@pytest.fixture
def kernel(host: Any) -> str:
    """The release of the kernel that starts next."""
    return str(host.check_output("ls /boot/vmlinuz-* | sort --version-sort | tail -1")).removeprefix("/boot/vmlinuz-")


def test_no_package_is_half_configured(host: Any) -> None:
    states = host.check_output("dpkg-query --show --showformat='${db:Status-Status}\\n'").split()
    assert set(states) <= {"installed", "config-files"}


def test_pitfall_26_the_devices_groups_have_numbers(host: Any) -> None:
    for name in ("render", "video"):
        assert host.group(name).gid


@pytest.mark.usefixtures("vendor")
class TestVendor:
    """AMD's amdgpu-dkms from its (stand-in) repository."""

    def test_release_of_the_line(self, host: Any) -> None:
        for name in ("amdgpu-dkms", "amdgpu-dkms-firmware"):
            assert ".31400100-" in host.package(name).version

    def test_pitfall_2_module_is_built_for_the_next_kernel(self, host: Any, kernel: str) -> None:
        assert kernel != host.check_output("uname -r")
        assert ": installed" in host.check_output("dkms status -m amdgpu -k %s", kernel)
        module = host.check_output("find /lib/modules/%s/updates -name 'amdgpu.ko*'", kernel)
        assert host.check_output("modinfo -F version %s", module).startswith("6.18.4")

    def test_pitfall_2_later_kernels_bring_their_headers(self, host: Any) -> None:
        assert host.package("linux-headers-cloud-amd64").is_installed

    def test_pitfall_1_packages_are_held_and_pinned(self, host: Any) -> None:
        assert {"amdgpu-dkms", "amdgpu-dkms-firmware"} <= set(host.check_output("apt-mark showhold").split())
        policy = host.check_output("apt-cache policy amdgpu-dkms")
        assert ".31400100-" in policy.split("Candidate:")[1].splitlines()[0]
        assert "1001" in policy

    def test_repository_is_trusted_by_its_own_key_alone(self, host: Any) -> None:
        source = host.file("/etc/apt/sources.list.d/inference-fleet-amdgpu.sources").content_string
        assert "Signed-By: /etc/apt/keyrings/inference-fleet-amdgpu.asc" in source
        assert host.run("ls /etc/apt/trusted.gpg.d/*amd*").rc != 0

    def test_no_rocm_on_the_node(self, host: Any) -> None:
        assert not host.package("rocminfo").is_installed


@pytest.mark.usefixtures("inbox")
class TestInbox:
    """The distribution's kernel, firmware and tools."""

    def test_firmware_comes_from_a_section_that_the_node_did_not_have(self, host: Any) -> None:
        assert host.package("firmware-amd-graphics").is_installed
        added = host.file("/etc/apt/sources.list.d/inference-fleet-amdgpu-components.sources")
        assert "Components: non-free-firmware" in added.content_string
        assert host.run("ls /lib/firmware/amdgpu/gc_11_0_0_mec.bin*").rc == 0

    def test_the_kernels_own_module_is_the_only_one(self, host: Any, kernel: str) -> None:
        found = host.check_output("find /lib/modules/%s/ -name 'amdgpu.ko*'", kernel).split()
        assert len(found) == 1
        assert "/kernel/drivers/gpu/drm/amd/" in found[0]

    def test_tools(self, host: Any) -> None:
        assert host.package("rocminfo").is_installed

    def test_parameters_are_in_the_boot_loader(self, host: Any) -> None:
        lines = host.check_output("grep 'linux.*vmlinuz' /boot/grub/grub.cfg").splitlines()
        assert all(" iommu=pt" in line for line in lines)
