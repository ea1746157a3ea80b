# SPDX-License-Identifier: Apache-2.0
"""The role's own refusals, and its tasks for RHEL rendered and held against the arguments that modules take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from driver_plays import check_arguments, documented_options, module_of, run_play
from nvidia_machines import ROOT, converged, decide, facts, gpu, table

ROLE = ROOT / "roles" / "nvidia_driver"


ROLE_TASK = {"ansible.builtin.import_role": {"name": "fleet.inference.nvidia_driver"}}


def test_without_facts_it_says_how_to_get_them(tmp_path: Path) -> None:
    done = run_play(tmp_path, [ROLE_TASK], inference_drivers=table())
    assert done.returncode == 2
    assert "gpu-07: nvidia_driver_facts is empty because nothing has read" in " ".join(done.stdout.split())


@pytest.mark.parametrize("machine", ["converged", "amd"])
def test_nothing_runs_on_a_node_that_has_what_it_should(tmp_path: Path, machine: str) -> None:
    node = converged(facts("debian 13", gpu("hopper")), "550.163.01")
    if machine == "amd":
        node = facts("debian 13", {**gpu("hopper"), "vendor": "amd"})
    # No interpreter is there: the first remote execution would fail.
    variables = {"nvidia_driver_facts": node, "inference_drivers": table(), "ansible_python_interpreter": "/nowhere"}
    done = run_play(tmp_path, [ROLE_TASK], **variables)
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout


def test_bad_input_stops_before_anything_is_run(tmp_path: Path) -> None:
    node = facts("debian 13", gpu("turing"))
    node["boot"]["secure_boot"] = True
    variables = {"nvidia_driver_facts": node, "inference_drivers": table(), "ansible_python_interpreter": "/nowhere"}
    done = run_play(tmp_path, [ROLE_TASK], **variables)
    assert done.returncode == 2
    assert "gpu-07: Secure Boot is on, and would refuse the kernel module" in " ".join(done.stdout.split())


def tasks_of(name: str) -> list[dict[str, Any]]:
    """Return the tasks of a file of the role."""
    return list(yaml.safe_load((ROLE / "tasks" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["packages_rpm.yml", "packages.yml", "kernel.yml", "files.yml"])
def test_tasks_give_modules_what_they_take(name: str) -> None:
    tasks = tasks_of(name)
    documented = documented_options(tasks)
    for task in tasks:
        options = documented[module_of(task)]
        if "include" not in module_of(task) and "free-form" not in str(options):
            check_arguments(task, options)


@pytest.mark.parametrize("generation", ["volta", "hopper"])
def test_rhel_tasks_render(tmp_path: Path, generation: str) -> None:
    node = facts("rhel 9", gpu(generation))
    variables = {
        **yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8")),
        **yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8")),
        "nvidia_driver_facts": node,
        "nvidia_driver_source": "vendor",
        "__nvidia_driver_decided": {"driver_plan": decide(node, source="vendor")},
        "__nvidia_driver_key": "the key",
    }
    rendered = tmp_path / "rendered"
    rendered.mkdir()
    shown = []
    for number, task in enumerate(tasks_of("packages_rpm.yml")):
        module = module_of(task)
        if module in ("ansible.builtin.include_tasks", "ansible.builtin.fail"):
            continue
        content = {"content": {"module": module, "arguments": task[module]}, "dest": f"{rendered}/{number}.json"}
        entry = {"ansible.builtin.copy": {**content, "mode": "0644"}}
        shown.append({**entry, **{key: task[key] for key in ("loop", "vars") if key in task}})
        if "loop" in task:
            shown[-1]["ansible.builtin.copy"]["dest"] = f"{rendered}/{number}-{{{{ item.path | basename }}}}.json"
    done = run_play(tmp_path, shown, **{**variables, "ansible_python_interpreter": sys.executable})
    assert done.returncode == 0, done.stdout
    results = [json.loads(file.read_text()) for file in sorted(rendered.iterdir())]
    stream = "580-open" if generation == "hopper" else "580-dkms"
    assert any(f"stream={stream}\n" in str(result["arguments"].get("content")) for result in results)
    packages = [result["arguments"]["name"] for result in results if result["module"] == "ansible.builtin.dnf"]
    kmod = "kmod-nvidia-open-dkms" if generation == "hopper" else "kmod-nvidia-latest-dkms"
    assert [kmod, "nvidia-driver-cuda", "nvidia-persistenced", "kernel-devel-matched"] in packages
    written = {
        result["arguments"]["dest"]: result["arguments"]["content"]
        for result in results
        if "dest" in result["arguments"]
    }
    assert written["/etc/inference-fleet/inference-fleet-nvidia.asc"] == "the key"
    assert "gpgcheck=1\n" in written["/etc/yum.repos.d/inference-fleet-nvidia.repo"]
