# SPDX-License-Identifier: Apache-2.0
"""The role's own refusals, run by ansible-playbook; it touches nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_without_facts_it_says_how_to_get_them(tmp_path: Path) -> None:
    role = {"ansible.builtin.import_role": {"name": "fleet.inference.container_runtime"}}
    play = [{"hosts": "gpu-07", "connection": "local", "gather_facts": False, "tasks": [role]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", "gpu-07,"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_CACHE_PLUGIN_CONNECTION"] = str(tmp_path / "facts")
    done = subprocess.run(
        [*command, str(tmp_path / "play.yml")], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert "gpu-07: container_runtime_facts is empty because nothing has read" in said
