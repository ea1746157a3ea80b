# SPDX-License-Identifier: Apache-2.0
"""The roles rocm and vulkan: refusals, nodes where nothing runs, and tasks held against what modules take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from amd_machines import ROOT, TABLE, add_packages, amd_gpu, intel_gpu, machine
from ansible_collections.fleet.inference.plugins.module_utils.drivers import amd, vulkan
from driver_plays import check_arguments, documented_options, module_of, run_play

#: No interpreter is there: the first remote execution would fail.
NOTHING_RUNS = {"inference_drivers": TABLE, "ansible_python_interpreter": "/nowhere"}


def role(name: str) -> list[dict[str, Any]]:
    """The task that runs a role."""
    return [{"ansible.builtin.import_role": {"name": f"fleet.inference.{name}"}}]


def loaded(name: str, part: str) -> Any:
    """A file of a role."""
    return yaml.safe_load((ROOT / "roles" / name / part).read_text(encoding="utf-8"))


def complete() -> dict[str, Any]:
    """A machine with everything that both roles want."""
    node = machine("debian 13", amd_gpu("gfx1100"), intel_gpu())
    names = ("libvulkan1", "mesa-vulkan-drivers", "vulkan-tools")
    add_packages(node, *names, "firmware-amd-graphics", "firmware-intel-graphics")
    return node


@pytest.mark.parametrize("name", ["rocm", "vulkan"])
def test_without_facts_it_says_how_to_get_them(tmp_path: Path, name: str) -> None:
    done = run_play(tmp_path, role(name), **NOTHING_RUNS)
    assert done.returncode == 2
    assert f"gpu-07: {name}_facts is empty because nothing has read" in " ".join(done.stdout.split())


@pytest.mark.parametrize("node", [complete(), machine("debian 13")], ids=["complete", "no GPU"])
@pytest.mark.parametrize("name", ["rocm", "vulkan"])
def test_nothing_runs_on_a_node_that_has_what_it_should(tmp_path: Path, name: str, node: dict[str, Any]) -> None:
    done = run_play(tmp_path, role(name), **NOTHING_RUNS, **{f"{name}_facts": node})
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout


def test_bad_input_stops_before_anything_is_run(tmp_path: Path) -> None:
    node = machine("debian 12", amd_gpu("gfx942", usable=False))
    done = run_play(tmp_path, role("rocm"), **NOTHING_RUNS, rocm_facts=node)
    assert done.returncode == 2
    assert "6.1.0-40-amd64 does not know gfx942, which needs 6.12 or later" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", ["rocm", "vulkan"])
def test_tasks_give_modules_what_they_take(name: str) -> None:
    files = sorted((ROOT / "roles" / name / "tasks").glob("*.yml"))
    tasks = [task for file in files for task in loaded(name, f"tasks/{file.name}") if "block" not in task]
    documented = documented_options(tasks)
    for task in tasks:
        options = documented[module_of(task)]
        if not (isinstance(task[module_of(task)], str) or "free-form" in str(options) or "key_value" in options):
            check_arguments(task, options)


def rendered(folder: Path, name: str, part: str, **variables: Any) -> list[dict[str, Any]]:
    """The modules and arguments of a file of tasks, as they would run."""
    values = {**loaded(name, "defaults/main.yml"), **loaded(name, "vars/main.yml"), **variables}
    out = folder / "rendered"
    out.mkdir()
    shown = []
    for number, task in enumerate(loaded(name, part)):
        module = module_of(task)
        if module in ("ansible.builtin.include_tasks", "ansible.builtin.fail"):
            continue
        place = (
            f"{out}/{number}-{{{{ item.path | default('') | basename }}}}.json"
            if "loop" in task
            else f"{out}/{number}.json"
        )
        content = {"content": {"module": module, "arguments": task[module]}, "dest": place, "mode": "0644"}
        shown.append({"ansible.builtin.copy": content, **{key: task[key] for key in ("loop", "vars") if key in task}})
    done = run_play(folder, shown, **values, ansible_python_interpreter=sys.executable)
    assert done.returncode == 0, done.stdout
    return [json.loads(file.read_text()) for file in sorted(out.iterdir())]


@pytest.mark.parametrize(("system", "folder"), [("rhel 9", "el/9.6"), ("rhel 10", "el/10")])
def test_rocm_tasks_for_rhel_render(tmp_path: Path, system: str, folder: str) -> None:
    node = machine(system, amd_gpu("gfx942"))
    wish = {**loaded("rocm", "defaults/main.yml"), "rocm_source": "vendor"}
    decided = amd.plan("gpu-07", node, wish, TABLE)
    values = {"rocm_facts": node, "rocm_source": "vendor", "__rocm_decided": {"driver_plan": decided}}
    found = rendered(tmp_path, "rocm", "tasks/packages_rpm.yml", **values, __rocm_key="the key")
    arguments = [item["arguments"] for item in found]
    sources = [item["content"] for item in arguments if item.get("dest") == amd.DNF_SOURCE]
    assert len(sources) == 1
    assert f"baseurl=https://repo.radeon.com/amdgpu/31.50/{folder}/main/x86_64\n" in sources[0]
    assert "gpgcheck=1\n" in sources[0]
    keys = [item["arguments"] for item in found if item["module"] == "ansible.builtin.rpm_key"]
    assert keys[0]["fingerprint"] == TABLE["amd"]["vendor"]["repository_key_fingerprint"]
    installed = [item["name"] for item in arguments if item.get("state") == "present" and "allow_downgrade" in item]
    assert installed == [decided["packages"]["install"]]
    assert "amdgpu-dkms-*.31500000-*[0-9]*" in installed[0]


def test_vulkan_tasks_for_rhel_render(tmp_path: Path) -> None:
    node = machine("rhel 9", intel_gpu())
    wish = loaded("vulkan", "defaults/main.yml")
    decided = vulkan.plan("gpu-07", node, wish, TABLE)
    values = {"vulkan_facts": node, "__vulkan_decided": {"driver_plan": decided}}
    found = rendered(tmp_path, "vulkan", "tasks/packages_rpm.yml", **values)
    assert found[0]["arguments"]["name"] == ["mesa-vulkan-drivers", "vulkan-loader", "vulkan-tools"]
