# SPDX-License-Identifier: Apache-2.0
"""The target that groups the services of a machine, and the pauses before a restart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import ServiceError
from ansible_collections.fleet.inference.plugins.module_utils.services.unit import render_lifecycle, render_target

UNIT = "inference-llamacpp.service"
TARGET = "inference-fleet.target"


def before_there_was_a_target(node):
    """Leave the node as versions without the target did: the service runs and starts by itself at boot."""
    (node.units / TARGET).unlink()
    (node.units / f"{UNIT}.d/lifecycle.conf").unlink()
    (node.units / f"{UNIT}.d").rmdir()
    for unit in (UNIT, TARGET):
        for link in node.links(unit):
            link.unlink()
    (node.units / "multi-user.target.wants" / UNIT).symlink_to(node.unit)
    node.active.pop(TARGET)
    node.loaded = {UNIT: node.unit.read_text()}


@pytest.mark.parametrize(("version", "pauses"), [(252, ["5"]), (253, ["5"]), (254, ["2", "4", "30"]), (0, ["5"])])
def test_pauses_grow_where_systemd_can(version, pauses):
    lines = render_lifecycle(version).splitlines()
    assert [line.partition("=")[2] for line in lines if line.startswith("Restart")] == pauses
    assert "PartOf=inference-fleet.target" in lines


def test_the_target_starts_the_service_at_boot(node, options):
    node.apply(options())
    assert node.links(UNIT) == [node.units / f"{TARGET}.wants" / UNIT]
    assert node.links(TARGET) == [node.units / "multi-user.target.wants" / TARGET]
    assert node.active[TARGET] == "active"
    alone = [call for call in node.calls if call[-1] == TARGET and call[1] == "start"]
    assert alone == [["systemctl", "start", "--job-mode=ignore-dependencies", TARGET]]


def test_a_running_service_joins_without_a_restart(node, options):
    node.apply(options())
    before_there_was_a_target(node)
    joined = [
        f"write {node.units}/{TARGET}",
        f"write {node.units}/{UNIT}.d/lifecycle.conf",
        f"enable {UNIT}",
        f"enable {TARGET}",
        "daemon-reload",
    ]
    assert node.apply(options(), check=True).actions == joined
    assert node.apply(options()).actions == joined
    assert node.verbs("restart", "start", "stop") == []
    assert node.links(UNIT) == [node.units / f"{TARGET}.wants" / UNIT]
    assert not node.apply(options()).changed


def test_another_systemd_restarts_nothing(node, options):
    node.systemd_version = 252
    node.apply(options())
    node.systemd_version = 257
    assert node.apply(options()).actions == [f"write {node.units}/{UNIT}.d/lifecycle.conf", "daemon-reload"]
    assert node.verbs("restart", "start", "stop") == []


def test_a_change_that_fails_leaves_an_ungrouped_service_as_it_was(node, options):
    node.apply(options())
    before_there_was_a_target(node)
    before = node.snapshot()
    node.healthy = lambda: "8192" not in (node.directory / "service.env").read_text()
    with pytest.raises(ServiceError, match="the previous version is serving again"):
        node.apply(options(env={"LLAMA_ARG_CTX_SIZE": "8192"}))
    assert node.snapshot() == before
    assert node.links(UNIT) == [node.units / "multi-user.target.wants" / UNIT]
    assert node.links(TARGET) == [] and node.active[TARGET] == "inactive"


def test_by_name_alone_a_service_is_started_and_stopped_before_it_is_grouped(node, options):
    node.apply(options())
    before_there_was_a_target(node)
    by_name = {"name": "llamacpp", **{key: options()[key] for key in ("config_root", "state_root", "unit_dir")}}
    assert not node.apply(by_name).changed
    assert node.apply({**by_name, "state": "stopped"}).actions == [f"disable {UNIT}", f"stop {UNIT}"]
    assert node.apply(by_name).actions == [f"enable {UNIT}", f"start {UNIT}"]
    assert TARGET not in node.active


def test_the_target_goes_with_the_last_service(node, options):
    node.apply(options())
    (node.units / "inference-gpu-settings.service").write_text("[Service]\nExecStart=/bin/true\n")
    node.apply(options(name="vllm"))
    assert f"remove {node.units}/{TARGET}" not in node.apply(options(name="vllm", state="absent")).actions
    assert (node.units / TARGET).exists() and node.active[TARGET] == "active"
    assert f"remove {node.units}/{TARGET}" in node.apply(options(state="absent"), check=True).actions
    assert f"remove {node.units}/{TARGET}" in node.apply(options(state="absent")).actions
    assert [path.name for path in node.units.rglob("*") if not path.is_dir()] == ["inference-gpu-settings.service"]
    assert not node.apply(options(state="absent")).changed


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not on this machine")
def test_systemctl_enables_with_the_target_alone(tmp_path: Path):
    """What the stand-in does with [Install] of a unit and its drop-in, systemctl does."""
    units = tmp_path / "etc/systemd/system"
    (units / f"{UNIT}.d").mkdir(parents=True)
    unit = units / UNIT
    unit.write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")

    def systemctl(*words: str) -> list[str]:
        subprocess.run(["systemctl", f"--root={tmp_path}", "--quiet", *words], check=True, capture_output=True)
        return sorted(str(path.relative_to(units)) for path in units.rglob("*") if path.is_symlink())

    assert systemctl("enable", UNIT) == [f"multi-user.target.wants/{UNIT}"]
    (units / f"{UNIT}.d/lifecycle.conf").write_text(render_lifecycle(252))
    (units / TARGET).write_text(render_target())
    assert systemctl("disable", UNIT) == []
    assert systemctl("enable", UNIT) == [f"{TARGET}.wants/{UNIT}"]
    assert systemctl("enable", TARGET) == [f"{TARGET}.wants/{UNIT}", f"multi-user.target.wants/{TARGET}"]
    assert systemctl("disable", UNIT) == [f"multi-user.target.wants/{TARGET}"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_reads_the_drop_in_and_the_target(tmp_path: Path):
    version = subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True, text=True).stdout
    (tmp_path / TARGET).write_text(render_target())
    (tmp_path / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / f"{UNIT}.d").mkdir()
    (tmp_path / f"{UNIT}.d/lifecycle.conf").write_text(render_lifecycle(int(version.split()[1])))
    argv = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(tmp_path / UNIT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "inference-" in line] == []
