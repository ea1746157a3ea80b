# SPDX-License-Identifier: Apache-2.0
"""Runs of the playbooks about plans, with this machine for every node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def write_inventory(folder: Path, hosts: str) -> Path:
    """Write an inventory with the project's own group_vars beside it; returns its file."""
    (folder / "hosts.yml").write_text(hosts)
    (folder / "group_vars").symlink_to(ROOT / "group_vars")
    return folder / "hosts.yml"


def play(inventory: Path, playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook; facts are kept from no run to the next."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    argv = [program, "-i", str(inventory), playbook, *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180)
