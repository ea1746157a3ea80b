# SPDX-License-Identifier: Apache-2.0
"""The order of a run: what no driver can do is told before anything changes; GPUs are planned with when they work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from driver_plays import run_play
from nvidia_machines import ROOT, converged, facts, gpu

TABLE = yaml.safe_load((ROOT / "group_vars" / "all" / "drivers.yml").read_text())["inference_drivers"]


def machine(usable: int, *gpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return facts as the preflight role keeps them."""
    shared = {"tier": "cuda" if usable else "cpu", "usable_count": usable, "groups": {}, "gpu_ready": None}
    return facts("debian 13", *gpus, **{"runtime": {}, **shared, **changes})


def role(name: str) -> dict[str, Any]:
    return {"ansible.builtin.include_role": {"name": "fleet.inference.preflight", "tasks_from": name}}


def run(
    folder: Path, node: dict[str, Any], *tasks: dict[str, Any], arguments: tuple[str, ...] = (), **variables: Any
) -> Any:
    """Let the preflight role see a node; no interpreter is there, so nothing can run on it."""
    keep = {"ansible.builtin.set_fact": {"gpu": node, "cacheable": True}}
    given = {"inference_drivers": TABLE, "ansible_python_interpreter": "/nowhere", **variables}
    return run_play(folder, [keep, role("drivers"), *tasks], *arguments, **given)


def told(done: Any) -> str:
    return " ".join(done.stdout.split())


SAY = {"ansible.builtin.debug": {"msg": "pending {{ __preflight_driver_pending }}, later {{ __preflight_plan_later }}"}}
WITH_DRIVER = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")


def test_a_bare_node_is_planned_after_its_driver(tmp_path: Path) -> None:
    done = run(tmp_path, machine(0, gpu("hopper")), SAY)
    assert done.returncode == 0, done.stdout
    assert "pending True, later True" in done.stdout


def test_a_node_whose_gpus_work_is_planned_at_once(tmp_path: Path) -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")
    done = run(tmp_path, {**machine(1), **node}, SAY)
    assert done.returncode == 0, done.stdout
    assert "later False" in done.stdout


def test_what_no_driver_can_do_is_told_before_the_plan(tmp_path: Path) -> None:
    done = run(tmp_path, machine(0, gpu("pascal"), gpu("blackwell", 1)), SAY)
    assert done.returncode == 2
    assert "gpu-07: " in done.stdout and "a machine has only one of them" in told(done)
    assert "pending" not in done.stdout


def test_a_check_of_a_bare_node_ends_where_its_driver_would_be_needed(tmp_path: Path) -> None:
    after = {"ansible.builtin.debug": {"msg": "the rest of the check"}}
    look = {"ansible.builtin.set_fact": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}}
    done = run(tmp_path, machine(0, gpu("hopper")), look, role("replan"), after, arguments=("--check",))
    assert done.returncode == 0, done.stdout
    assert "gpu-07: is planned when the driver of its GPUs works, which a check does not install" in told(done)
    assert "the rest of the check" not in done.stdout


def test_a_node_whose_gpus_wait_for_a_restart_is_not_quietly_served_by_its_cpu(tmp_path: Path) -> None:
    look = {"ansible.builtin.set_fact": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}}
    node = machine(0, gpu("hopper", driver_bound="nouveau"))
    done = run(tmp_path, node, look, role("replan"), nvidia_driver_reboot="never")
    assert done.returncode == 2
    assert (
        "gpu-07: its GPUs can't be used yet, because nouveau has the GPUs until then; restart the node "
        "(nvidia_driver_reboot and rocm_reboot let the fleet do it), or set inference_tier to cpu to serve without them"
    ) in told(done)
