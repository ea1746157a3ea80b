# SPDX-License-Identifier: Apache-2.0
"""Runs of the drivers' roles on this machine, which plays the host gpu-07, and their tasks held against the modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}


def run_play(
    folder: Path, tasks: list[dict[str, Any]], *arguments: str, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run tasks for the host gpu-07 on this machine."""
    play = [{"hosts": "gpu-07", "connection": "local", "gather_facts": False, "vars": variables, "tasks": tasks}]
    (folder / "play.yml").write_text(yaml.safe_dump(play))
    command = [str(BIN / "ansible-playbook"), "--inventory", "gpu-07,", str(folder / "play.yml"), *arguments]
    environment = {**ENVIRONMENT, "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "facts")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def module_of(task: Mapping[str, Any]) -> str:
    """Return the module of a task."""
    return next(key for key in task if "." in key)


def documented_options(tasks: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the documented options of every module that the tasks use."""
    command = [str(BIN / "ansible-doc"), "--json", "--type", "module", *sorted({module_of(task) for task in tasks})]
    found = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return {name: entry["doc"].get("options", {}) for name, entry in json.loads(found.stdout).items()}


def check_arguments(task: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Insist that a task gives its module what it takes, and all that it requires."""
    module = module_of(task)
    known = set(options) | {alias for option in options.values() for alias in option.get("aliases", [])}
    assert set(task[module]) <= known, f"{module} does not take {set(task[module]) - known}"
    required = {option for option, spec in options.items() if spec.get("required")}
    assert required <= set(task[module]), f"{module} wants {required - set(task[module])}"
