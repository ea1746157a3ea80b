# SPDX-License-Identifier: Apache-2.0
"""Preflight looks and plans; it leaves a node exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]


def test_nothing_was_written(host: Any) -> None:
    assert host.file("/run/before-the-first-run").exists
    written = host.check_output(
        "find /etc /usr /opt /srv /root /home /boot /var/lib/dpkg -xdev -newer /run/before-the-first-run"
    )
    assert written == ""


@pytest.mark.parametrize("path", ["/etc/inference-fleet", "/var/lib/inference-fleet", "/etc/docker"])
def test_no_folder_of_the_fleet(host: Any, path: str) -> None:
    assert not host.file(path).exists


@pytest.mark.parametrize("package", ["docker.io", "containerd", "haproxy"])
def test_no_package(host: Any, package: str) -> None:
    assert not host.package(package).is_installed
