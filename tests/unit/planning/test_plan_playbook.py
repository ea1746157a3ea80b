# SPDX-License-Identifier: Apache-2.0
"""The playbook that explains plans, with this machine for every node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from playbook_runs import play, write_inventory

ROOT = Path(__file__).resolve().parents[3]
HOSTS = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    inference_address: 0.0.0.0
    inference_tier: cpu
  children:
    gpu-nodes:
      hosts:
        gpu-01:
        gpu-02:
          llamacpp_model: no-such-model
        gpu-03:
        gpu-04:
          llamacpp_parallel: many
    gateways:
      hosts:
        gateway-01:
"""


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inventory(tmp_path_factory.mktemp("inventory"), HOSTS)


def explain(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return play(inventory, "playbooks/plan.yml", *arguments)


def test_one_node_is_explained_and_nothing_changes(inventory: Path) -> None:
    done = explain(inventory, "-l", "gpu-01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "    Node         gpu-01, tier cpu, 0.0.0.0\n" in done.stdout
    assert "gpu-02" not in done.stdout
    assert "changed=0" in done.stdout and "failed=0" in done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("    ")]
    assert len(shown) > 10
    assert max(map(len, shown)) <= 120


def test_programs_get_one_document_of_all_nodes(inventory: Path) -> None:
    done = explain(inventory, "-e", "format=json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert [node["node"] for node in found["nodes"]] == ["gpu-01", "gpu-03"]
    assert found["nodes"][0]["services"][0]["backend"] == "llamacpp"
    reasons = {item["node"]: item["reason"] for item in found["without_plan"]}
    assert reasons["gpu-02"].startswith("gpu-02: llamacpp_model is 'no-such-model', which is not in inference_models")
    assert reasons["gpu-02"] in done.stderr
    assert reasons["gpu-04"] == (
        "gpu-04: its variables are wrong or its facts cannot be read; standard error says which"
    )
    assert "llamacpp_parallel" in done.stderr
    assert len(reasons) == 2


def test_another_format_is_refused_in_one_sentence(inventory: Path) -> None:
    done = explain(inventory, "-e", "format=xml")
    assert done.returncode == 2
    assert 'FAILED! => format is "xml"; give one of text, json\n' in done.stdout
    assert "Read the facts" not in done.stdout
