# SPDX-License-Identifier: Apache-2.0
"""Docker Engine of the distribution on a node that came without one, and what another owner wants of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]
TOOLKIT = {
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
}


def has_gpu(variables: dict[str, Any]) -> bool:
    """Whether the inventory lays a recorded GPU over the node's facts."""
    return "container_runtime_facts" in variables


@pytest.fixture
def info(host: Any) -> dict[str, Any]:
    """What the running daemon says of itself: not what its file says."""
    return dict(json.loads(host.check_output("docker info --format '{{json .}}'")))


def test_engine_runs(host: Any, info: dict[str, Any]) -> None:
    docker = host.service("docker")
    assert docker.is_running
    assert docker.is_enabled
    assert info["ServerVersion"]


def test_packages_come_from_the_distribution_and_are_held(host: Any, variables: dict[str, Any]) -> None:
    wanted = {"docker.io", "containerd", "runc"}
    if variables["local_node_release"] == "trixie":
        wanted.add("docker-cli")
    toolkit = TOOLKIT if has_gpu(variables) else set()
    assert set(host.check_output("apt-mark showhold").split()) == wanted | toolkit
    for package in wanted:
        assert host.package(package).is_installed, package


def test_a_node_with_nvidia_gpus_has_the_container_toolkit(host: Any, variables: dict[str, Any]) -> None:
    """The wanted version of all four packages, although the repository has a newer one; another node has none."""
    for name in TOOLKIT:
        package = host.package(name)
        assert package.is_installed == has_gpu(variables), name
        assert not has_gpu(variables) or package.version.startswith("1.20.0"), name


def test_an_upgrade_leaves_docker_alone(host: Any) -> None:
    simulated = host.check_output("apt-get --simulate --quiet dist-upgrade")
    assert "Inst docker" not in simulated
    assert "Inst containerd" not in simulated
    assert "Inst nvidia" not in simulated and "Inst libnvidia" not in simulated


def test_options_are_merged(host: Any, variables: dict[str, Any]) -> None:
    options = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert options == {
        "labels": ["rack=b7"],
        "log-opts": {"compress": "true", "max-size": "10m", "max-file": "3"},
        "log-driver": "json-file",
        "live-restore": True,
        "features": {"cdi": True},
        "insecure-registries": variables["inference_insecure_registries"],
    }


def test_the_old_file_is_kept_beside_it(host: Any) -> None:
    backups = host.check_output("ls /etc/docker/daemon.json.*~").split()
    assert len(backups) == 1
    assert json.loads(host.file(backups[0]).content_string) == {"labels": ["rack=b7"], "log-opts": {"compress": "true"}}


def test_the_daemon_uses_them(info: dict[str, Any], variables: dict[str, Any]) -> None:
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == "json-file"
    assert info["Labels"] == ["rack=b7"]
    for registry in variables["inference_insecure_registries"]:
        assert info["RegistryConfig"]["IndexConfigs"][registry]["Secure"] is False


def test_an_image_is_pulled_and_runs(host: Any, image: str) -> None:
    ran = host.run("docker run --rm --name first %s --version", image)
    assert ran.rc == 0, ran.stderr
    assert "version:" in ran.stdout + ran.stderr


def test_logs_are_rotated(host: Any, image: str, inspect: Any) -> None:
    host.check_output("docker create --name rotated %s", image)
    try:
        log = inspect("rotated")["HostConfig"]["LogConfig"]
    finally:
        host.check_output("docker rm rotated")
    assert log == {"Type": "json-file", "Config": {"compress": "true", "max-file": "3", "max-size": "10m"}}
