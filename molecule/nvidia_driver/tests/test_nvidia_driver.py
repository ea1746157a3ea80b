# SPDX-License-Identifier: Apache-2.0
"""Debian's own driver, built by DKMS for the kernel that the node boots next. The numbers are those of peers.md, D1."""

from __future__ import annotations

from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

#: One command a node: what the tests look at, by its title. Node's own kernel: the one in /boot, not this machine's.
QUESTIONS = r"""
kernel=$(linux-version list | tail -1)
modules=/lib/modules/$kernel/updates/dkms
file=$(ls "$modules"/nvidia-current.ko* "$modules"/nvidia-current-open.ko* 2>/dev/null)
initramfs=/boot/initrd.img-$kernel
title() { echo "@@@ $1"; }
title kernel; echo "$kernel"
title packages; dpkg-query --show --showformat '${db:Status-Status} ${Package} ${Version}\n'
title audit; dpkg --audit
title held; apt-mark showhold
title upgrade; apt-get --simulate dist-upgrade
title excluded; apt-config dump Unattended-Upgrade::Package-Blacklist
title origin; apt-cache policy libcuda1
title dkms; dkms status
title module; modinfo "$file"
title modprobe; modprobe --showconfig
title initramfs; lsinitramfs "$initramfs"
title newer; find /etc/modprobe.d /etc/initramfs-tools -newer "$initramfs"
title persistenced; systemctl is-enabled nvidia-persistenced
"""


@pytest.fixture(scope="module")
def wanted(host: Any) -> dict[str, Any]:
    """The node's variables."""
    return dict(host.ansible.get_variables())


@pytest.fixture(scope="module")
def said(host: Any) -> dict[str, str]:
    """The node's answers by title."""
    parts = host.run(QUESTIONS).stdout.split("@@@ ")[1:]
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


@pytest.fixture
def installed(said: dict[str, str]) -> dict[str, str]:
    """Installed packages and their versions."""
    rows = (line.split() for line in said["packages"].splitlines())
    return {name: version for state, name, version in rows if state == "installed"}


@pytest.fixture
def module(said: dict[str, str]) -> dict[str, str]:
    """What modinfo says of the module for the next kernel."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in said["module"].splitlines())}


def test_the_driver_is_of_the_distribution(
    said: dict[str, str], installed: dict[str, str], wanted: dict[str, Any]
) -> None:
    assert {wanted["wanted_module_package"], "libcuda1", "nvidia-smi", "nvidia-persistenced"} <= set(installed)
    assert installed["libcuda1"].startswith(wanted["wanted_branch"] + ".")
    assert f"/debian {wanted['local_node_release']}/non-free " in said["origin"].replace("-security", "")


def test_nothing_of_a_desktop_comes_along(installed: dict[str, str]) -> None:
    assert not {"nvidia-driver", "xserver-xorg-core", "nvidia-settings"} & set(installed)


def test_no_package_is_half_configured(said: dict[str, str]) -> None:
    assert said["audit"] == ""


def test_pitfall_1_library_and_module_are_of_one_version(installed: dict[str, str], module: dict[str, str]) -> None:
    assert installed["libcuda1"].startswith(module["version"] + "-")


def test_pitfall_1_no_upgrade_touches_the_driver(said: dict[str, str], wanted: dict[str, Any]) -> None:
    held = set(said["held"].split())
    assert {wanted["wanted_module_package"], "libcuda1", "nvidia-smi", "nvidia-persistenced"} <= held
    assert "Inst nvidia" not in said["upgrade"]
    assert "nvidia" in said["excluded"]
    assert "libcuda1" in said["excluded"]


def test_pitfall_2_the_next_kernel_has_the_module(said: dict[str, str], module: dict[str, str]) -> None:
    assert f", {said['kernel']}, x86_64: installed" in said["dkms"]
    assert module["vermagic"].split()[0] == said["kernel"]


def test_pitfall_2_headers_follow_the_kernel(said: dict[str, str], installed: dict[str, str]) -> None:
    assert "linux-headers-cloud-amd64" in installed
    assert not [name for name in said["held"].split() if name.startswith(("linux-headers", "linux-image"))]


def test_pitfall_4_the_module_is_of_the_flavour_that_the_gpu_needs(
    module: dict[str, str], wanted: dict[str, Any]
) -> None:
    assert ("GPL" in module["license"]) == (wanted["wanted_flavour"] == "open")


def test_pitfall_5_nouveau_stays_away_also_in_the_initramfs(said: dict[str, str]) -> None:
    assert "blacklist nouveau" in said["modprobe"]
    assert "etc/modprobe.d/inference-fleet-nvidia.conf" in said["initramfs"]
    assert said["newer"] == ""


def test_pitfall_6_no_fabric_manager_without_nvswitch(installed: dict[str, str]) -> None:
    assert not [name for name in installed if "fabric" in name]


def test_pitfall_9_the_driver_stays_loaded(said: dict[str, str]) -> None:
    assert said["persistenced"] == "enabled"
