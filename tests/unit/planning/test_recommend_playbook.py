# SPDX-License-Identifier: Apache-2.0
"""The playbook that recommends services, with this machine for every node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from playbook_runs import play, write_inventory

ROOT = Path(__file__).resolve().parents[3]
HOSTS = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    inference_address: 0.0.0.0
    inference_tier: cpu
    inference_backends: [llamacpp]
  children:
    gpu-nodes:
      hosts:
        gpu-01:
          inference_services: auto
          inference_workload: edge
        gpu-02:
          inference_workload: caht
        gpu-03:
    gateways:
      hosts:
        gateway-01:
"""


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inventory(tmp_path_factory.mktemp("inventory"), HOSTS)


def test_a_nodes_services_are_recommended_to_paste(inventory: Path) -> None:
    done = play(inventory, "playbooks/recommend.yml", "-l", "gpu-03", "-e", "workload=agents")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("    ")]
    assert lines[0] == "Node      gpu-03, tier cpu, workload agents"
    end = next(number for number, line in enumerate(lines) if line.startswith("Name "))
    (service,) = yaml.safe_load("\n".join(lines[1:end]))["inference_services"]
    assert service["backend"] == "llamacpp"
    # The row of the plan.
    assert service["model"] in lines[end + 1] and "CPU" in lines[end + 1]
    assert any(line.startswith("Why       - workload agents: ") for line in lines)
    assert any(line.startswith("Better    - ") for line in lines)
    assert max(map(len, lines)) <= 116
    assert "changed=0" in done.stdout and "failed=0" in done.stdout
    assert "Fleet of" not in done.stdout


def test_the_fleet_shares_a_model(inventory: Path) -> None:
    done = play(inventory, "playbooks/recommend.yml", "-l", "gpu-01,gpu-03")
    assert done.returncode == 0, done.stdout + done.stderr
    # Without -e workload each node's own, and the first node's for the fleet.
    assert "    Node      gpu-01, tier cpu, workload edge\n" in done.stdout
    assert "    Node      gpu-03, tier cpu, workload chat\n" in done.stdout
    assert "    Fleet of 2 nodes, workload edge: " in done.stdout
    assert "    # gpu-01, gpu-03\n    inference_services:\n" in done.stdout


def test_programs_get_one_document_of_all_nodes(inventory: Path) -> None:
    done = play(inventory, "playbooks/recommend.yml", "-e", "format=json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert [(node["node"], node["workload"]) for node in found["nodes"]] == [("gpu-01", "edge"), ("gpu-03", "chat")]
    assert found["nodes"][0]["services"][0]["backend"] == "llamacpp"
    assert sorted(found["fleet"]["nodes"]) == ["gpu-01", "gpu-03"]
    assert [item["node"] for item in found["without_recommendation"]] == ["gpu-02"]
    assert "inference_workload" in done.stderr and "caht" in done.stderr


def test_another_format_is_refused_in_one_sentence(inventory: Path) -> None:
    done = play(inventory, "playbooks/recommend.yml", "-e", "format=xml")
    assert done.returncode == 2
    assert 'FAILED! => format is "xml"; give one of text, json\n' in done.stdout


def test_another_workload_is_refused_in_one_sentence(inventory: Path) -> None:
    done = play(inventory, "playbooks/recommend.yml", "-l", "gpu-01", "-e", "workload=chta")
    assert done.returncode == 2
    assert "gpu-01: inference_workload is 'chta', which is no workload; did you mean chat? known: agents" in done.stdout


def test_a_node_that_chooses_itself_is_planned_so(inventory: Path) -> None:
    done = play(inventory, "playbooks/plan.yml", "-l", "gpu-01")
    assert done.returncode == 0, done.stdout + done.stderr
    recommended = play(inventory, "playbooks/recommend.yml", "-l", "gpu-01", "-e", "format=json")
    model = json.loads(recommended.stdout)["nodes"][0]["services"][0]["model"]
    assert any(model in line for line in done.stdout.splitlines() if line.startswith("    "))
