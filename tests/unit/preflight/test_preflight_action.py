# SPDX-License-Identifier: Apache-2.0
"""The check of the variables, run by ansible-playbook; it connects to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PLAY = [{"hosts": "gpu-nodes", "gather_facts": False, "tasks": [{"fleet.inference.preflight": None}]}]


def run(folder: Path, variables: dict[str, object], gateways: dict[str, None]) -> subprocess.CompletedProcess[str]:
    """Check one node that can't be reached, with ``variables`` of its own."""
    node = {"gpu-02": {"ansible_host": "192.0.2.1", **variables}}
    children = {"gpu-nodes": {"hosts": node}, "gateways": {"hosts": gateways}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}))
    (folder / "play.yml").write_text(yaml.safe_dump(PLAY))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(folder / "hosts.yml")]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_CACHE_PLUGIN_CONNECTION"] = str(folder / "facts")
    return subprocess.run(
        [*command, str(folder / "play.yml")], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_good_variables(tmp_path: Path) -> None:
    done = run(tmp_path, {"inference_backends": ["llamacpp"], "preflight_minimum_systemd": "250"}, {"gateway-01": None})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("gateways", [{}, {"gateway-01": None}])
def test_every_problem_is_one_sentence(tmp_path: Path, gateways: dict[str, None]) -> None:
    variables = {
        "preflight_minimum_systemd": "new",
        "inference_backend": ["llamacpp"],
        "inference_address": "{{ nowhere }}",
        "container_runtime_version": {"token": "sk-hidden-value"},
    }
    done = run(tmp_path, variables, gateways)
    assert done.returncode == 2
    sentences = {
        "gpu-02: preflight_minimum_systemd is 'new' (text); give a whole number",
        "gpu-02: no variable is called inference_backend; did you mean inference_backends?",
        "gpu-02: inference_address can't be resolved ('nowhere' is undefined); correct its template",
        "gpu-02: container_runtime_version is a mapping; give a text",
    }
    if not gateways:
        sentences.add(
            "gpu-02: the inventory has no host in the group gateways, so nobody could reach the models; "
            "add at least one host to that group"
        )
    said = {line.split("Action failed: ")[-1] for line in done.stderr.splitlines() + done.stdout.splitlines()}
    assert sentences <= {line.strip() for line in said}
    assert "sk-hidden-value" not in done.stdout + done.stderr
