# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

OURS = [
    "etc/apt/apt.conf.d/52inference-fleet",
    "etc/apt/preferences.d/inference-fleet-nvidia",
    "etc/apt/keyrings/inference-fleet-nvidia.asc",
    "etc/inference-fleet/gpu-ready.json",
    "etc/modprobe.d/inference-gpu.conf",
    "etc/systemd/system/gpu-ready.service",
    "etc/systemd/system/nvidia-persistenced.service.d/inference-fleet.conf",
    "etc/udev/rules.d/70-inference-gpu.rules",
    "usr/local/libexec/inference-fleet/gpu-ready",
]
NOT_OURS = [
    "etc/inference-fleet/services/chat/service.json",
    "etc/modprobe.d/my-inference-gpu.conf",
    "etc/ssl/inference-fleet.pem",
    "usr/local/libexec/gpu-ready",
    "usr/share/inference-fleet/x",
]


def test_files_of_ours(machine: Any) -> None:
    for path in [*OURS, *NOT_OURS]:
        machine.write(path, path)
    assert machine.facts()["files"] == {f"/{path}": hashlib.sha256(path.encode()).hexdigest() for path in OURS}


def test_no_hash_of_a_secret_and_none_behind_a_link(machine: Any) -> None:
    machine.write("etc/apt/auth.conf.d/inference-fleet.conf", "password").chmod(0o600)
    machine.write("secret", "password")
    machine.link("etc/modprobe.d/inference-gpu.conf", "../../secret")
    machine.link("etc/inference-fleet", "../elsewhere")
    machine.write("elsewhere/inference-fleet.json", "")
    assert machine.facts()["files"] == {}


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `systemctl` of our own that prints the given text."""

    def make(text: str, status: int = 0) -> None:
        program = tmp_path / "bin" / "systemctl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def test_units(machine: Any, systemctl: Any) -> None:
    machine.write("usr/lib/systemd/system/nvidia-persistenced.service", "")
    machine.write("etc/systemd/system/gpu-ready.service", "")
    machine.link("etc/systemd/system/nvidia-fabricmanager.service", "/dev/null")
    machine.write("lib/systemd/system/nvidia-fabricmanager.service", "")
    for name in ("nvidia-persistenced.service", "nvidia-fabricmanager.service"):
        machine.link(f"etc/systemd/system/multi-user.target.wants/{name}", f"/usr/lib/systemd/system/{name}")
    systemctl("Id=gpu-ready.service\nActiveState=active\n\nId=nvidia-persistenced.service\nActiveState=failed")
    # An absolute link leads out of a machine made of files; a real one has the unit of /lib.
    assert machine.facts(live=True)["units"] == {
        "nvidia-persistenced.service": {"enabled": True, "active": False},
        "nvidia-fabricmanager.service": {"enabled": False, "active": None},
        "gpu-ready.service": {"enabled": False, "active": True},
    }
    assert machine.facts()["units"]["gpu-ready.service"] == {"enabled": False, "active": None}


def test_systemd_that_does_not_answer(machine: Any, systemctl: Any) -> None:
    machine.write("etc/systemd/system/gpu-ready.service", "")
    systemctl("", 1)
    facts = machine.facts(live=True)
    assert facts["units"] == {"gpu-ready.service": {"enabled": False, "active": None}}
    assert "systemctl" in [error["source"] for error in facts["errors"]]


def test_what_gpu_ready_found(machine: Any) -> None:
    assert machine.facts()["gpu_ready"] is None
    content = {
        "ready": False,
        "problems": ["a"],
        "configuration_sha256": "0" * 64,
        "boot_id": "b",
        "expected": [
            {"vendor": "nvidia", "pci_bus_id": "0000:01:00.0", "power_limit_watts": 450, "mig": ["7g.80gb"]},
            {"vendor": "nvidia", "pci_bus_id": "0000:41:00.0", "power_limit_watts": None, "mig": None},
        ],
    }
    machine.write("run/inference-fleet/gpu-ready.json", json.dumps(content))
    assert machine.facts()["gpu_ready"] == content


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_report_is_an_error_of_its_own(machine: Any, text: str) -> None:
    machine.write("run/inference-fleet/gpu-ready.json", text)
    facts = machine.facts()
    assert facts["gpu_ready"] is None
    assert [error["source"] for error in facts["errors"]] == ["gpu_ready"]
