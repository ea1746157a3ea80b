# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's repository, played by stand-in packages of the same names. The numbers are those of peers.md, D1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]
SCENARIO = Path(__file__).resolve().parents[1]
EXECUTIONS = SCENARIO.parents[1] / "tests" / "integration" / "callback_plugins"


#: One command a node: what the tests look at, by its title. The kernel is the node's own, in /boot.
QUESTIONS = r"""
title() { echo "@@@ $1"; }
title kernel; linux-version list | tail -1
title packages; dpkg-query --show --showformat '${db:Status-Status} ${Package} ${Version}\n'
title audit; dpkg --audit
title held; apt-mark showhold
title upgrade; apt-get --simulate dist-upgrade
title excluded; apt-config dump Unattended-Upgrade::Package-Blacklist
title policy; apt-cache policy nvidia-driver-cuda
title sources; grep -rl 10.214.77.3 /etc/apt
title trusted; ls /etc/apt/trusted.gpg.d
title source; cat /etc/apt/sources.list.d/inference-fleet-nvidia.sources
title dkms; dkms status
title units; systemctl is-enabled nvidia-persistenced nvidia-fabricmanager
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
def driver(said: dict[str, str]) -> dict[str, str]:
    """Installed packages of the driver and their versions."""
    rows = (line.split() for line in said["packages"].splitlines())
    installed = {name: version for state, name, version in rows if state == "installed"}
    return {name: version for name, version in installed.items() if "nvidia" in name or name == "libcuda1"}


def test_every_package_is_of_the_wanted_version(driver: dict[str, str], wanted: dict[str, Any]) -> None:
    assert driver["nvidia-driver-cuda"]
    assert set(driver.values()) == {wanted["wanted_version"] + "-1"}


def test_nothing_of_a_desktop_comes_along(driver: dict[str, str]) -> None:
    assert not {"nvidia-driver", "nvidia-settings", "xserver-xorg-video-nvidia"} & set(driver)


def test_no_package_is_half_configured(said: dict[str, str]) -> None:
    assert said["audit"] == ""


def test_the_repository_is_trusted_for_itself_alone(said: dict[str, str]) -> None:
    assert said["sources"] == "/etc/apt/sources.list.d/inference-fleet-nvidia.sources"
    assert "\nSigned-By: /etc/apt/keyrings/inference-fleet-nvidia.asc" in said["source"]
    assert not [name for name in said["trusted"].split() if not name.startswith("debian-")]


def test_the_pin_keeps_the_version(said: dict[str, str], wanted: dict[str, Any]) -> None:
    assert f"Candidate: {wanted['wanted_version']}-1" in said["policy"]
    assert "595.58.03-1" in said["policy"]


def test_pitfall_1_no_upgrade_touches_the_driver(said: dict[str, str], driver: dict[str, str]) -> None:
    assert set(driver) <= set(said["held"].split())
    assert "Inst nvidia" not in said["upgrade"]
    assert "nvidia" in said["excluded"]


def test_pitfall_2_the_next_kernel_has_the_module(said: dict[str, str], wanted: dict[str, Any]) -> None:
    assert f"nvidia/{wanted['wanted_version']}, {said['kernel']}, x86_64: installed" in said["dkms"]


def test_pitfall_4_the_module_is_of_the_flavour_that_the_gpu_needs(
    driver: dict[str, str], wanted: dict[str, Any]
) -> None:
    flavours = {"nvidia-kernel-open-dkms": "open", "nvidia-kernel-dkms": "proprietary"}
    assert [flavours[name] for name in flavours if name in driver] == [wanted["wanted_flavour"]]


def test_pitfall_6_fabric_manager_is_of_the_drivers_version_and_only_where_a_switch_is(
    said: dict[str, str], driver: dict[str, str], wanted: dict[str, Any]
) -> None:
    if wanted["recorded"]["nvswitch_count"]:
        assert driver["nvidia-fabricmanager"] == driver["nvidia-driver-cuda"]
        assert said["units"].split() == ["enabled", "enabled"]
    else:
        assert "nvidia-fabricmanager" not in driver


def test_pitfall_9_the_driver_stays_loaded(said: dict[str, str]) -> None:
    assert said["units"].split()[0] == "enabled"


AMD = {"vendor": "amd", "pci_bus_id": "0000:c1:00.0", "name": "MI300X", "generation": "cdna3", "driver_bound": "amdgpu"}


@pytest.mark.parametrize("devices", [None, [AMD], []], ids=["as wanted", "AMD", "no GPU"])
def test_nothing_is_run_on_a_node_that_needs_nothing(tmp_path: Path, devices: list[dict[str, Any]] | None) -> None:
    extra = [] if devices is None else ["-e", json.dumps({"recorded": {"devices": devices, "nvswitch_count": 0}})]
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    playbook = Path(sys.executable).parent / "ansible-playbook"
    counted = tmp_path / "executions"
    done = subprocess.run(
        [str(playbook), "-i", str(inventory), *extra, str(SCENARIO / "converge.yml")],
        env={
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(EXECUTIONS),
            "ANSIBLE_CALLBACKS_ENABLED": "executions",
            "EXECUTIONS_FILE": str(counted),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    executed = sorted(line.split("\t")[:2] for line in counted.read_text().splitlines())
    assert [(host, module.rpartition(".")[2]) for host, module in executed] == [
        ("gpu-01", "gpu_facts"),
        ("gpu-02", "gpu_facts"),
    ]
