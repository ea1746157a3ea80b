# SPDX-License-Identifier: Apache-2.0
"""gpu-ready on nodes whose GPUs are files: what was applied, what is reported, and in which order it comes at boot."""

from __future__ import annotations

import json
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]
CONFIGURATION = "/etc/inference-fleet/gpu-ready.json"
REPORT = "/run/inference-fleet/gpu-ready.json"


@pytest.fixture
def node(host: Any) -> str:
    """The node's name in the inventory."""
    return str(host.backend.get_hostname())


@pytest.fixture
def gpus(host: Any, variables: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stand-in nvidia-smi knows."""
    return list(json.loads(host.file(f"{variables['stand_in']}/gpus.json").content_string))


def read(host: Any, path: str) -> dict[str, Any]:
    """A JSON file of the node."""
    return dict(json.loads(host.file(path).content_string))


def test_the_node_is_ready(host: Any) -> None:
    unit = host.service("gpu-ready")
    assert unit.is_running and unit.is_enabled
    report = read(host, REPORT)
    assert (report["ready"], report["problems"]) == (True, [])
    assert [gpu["pci_bus_id"] for gpu in report["expected"]] == ["0000:01:00.0", "0000:41:00.0"]
    assert report["configuration_sha256"] == host.file(CONFIGURATION).sha256sum


def test_systemd_finds_nothing_wrong_with_the_units(host: Any, node: str) -> None:
    names = ["gpu-ready", *(["inference-gpu-settings"] if node == "gpu-01" else [])]
    for name in names:
        verified = host.run(f"systemd-analyze verify /etc/systemd/system/{name}.service")
        assert name not in verified.stderr, verified.stderr


def test_anybody_may_read_and_root_alone_may_write(host: Any) -> None:
    for path in (CONFIGURATION, REPORT):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "root", 0o644), path
    assert host.file("/usr/local/libexec/inference-fleet/gpu-ready").mode == 0o755


def test_settings_only_where_there_are_any(host: Any, node: str) -> None:
    assert host.file("/etc/systemd/system/inference-gpu-settings.service").exists is (node == "gpu-01")


def test_pitfall_8_the_mig_layout_is_applied(node: str, gpus: list[dict[str, Any]]) -> None:
    layouts = [(gpu["mig"], gpu["instances"]) for gpu in gpus]
    assert layouts == (
        [(True, ["3g.40gb", "3g.40gb", "1g.10gb"]), (False, [])] if node == "gpu-01" else [(False, [])] * 2
    )


def test_pitfall_9_power_limits_come_after_the_persistence_daemon(
    host: Any, node: str, gpus: list[dict[str, Any]]
) -> None:
    assert [gpu["limit"] for gpu in gpus] == ([450, 300] if node == "gpu-01" else [700, 700])
    if node == "gpu-01":
        after = host.check_output("systemctl show --property=After --value inference-gpu-settings.service").split()
        assert "nvidia-persistenced.service" in after
        assert "inference-gpu-settings.service" in host.check_output(
            "systemctl show --property=After --value gpu-ready.service"
        )


def test_pitfall_12_gpus_are_known_by_address_and_never_by_index(host: Any, node: str) -> None:
    configuration = read(host, CONFIGURATION)
    assert all(set(gpu) == {"vendor", "pci_bus_id", "power_limit_watts", "mig"} for gpu in configuration["gpus"])
    if node == "gpu-01":
        assert [gpu["power_limit_watts"] for gpu in configuration["gpus"]] == [450, 300]


def test_cdi_names_what_services_are_given(host: Any, node: str, variables: dict[str, Any]) -> None:
    file = host.file(f"{variables['stand_in']}/var/run/cdi/nvidia.yaml")
    if node == "gpu-03":
        assert not file.exists
        return
    names = [line.split()[-1] for line in file.content_string.splitlines() if "name:" in line]
    assert names == (["MIG-0-0", "MIG-0-1", "MIG-0-2", "GPU-1"] if node == "gpu-01" else ["GPU-0", "GPU-1"])


def test_device_nodes_were_made(host: Any, node: str, variables: dict[str, Any]) -> None:
    if node != "gpu-03":
        assert host.file(f"{variables['stand_in']}/dev/nvidia-uvm").exists
