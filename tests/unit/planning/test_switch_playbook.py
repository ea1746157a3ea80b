# SPDX-License-Identifier: Apache-2.0
"""The playbook that switches services, in check mode with this machine for every node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHAT = {"name": "chat", "backend": "llamacpp", "model": "smollm2-135m-instruct"}
SWITCH = ("-e", "service=chat", "-e", "model=qwen3-0.6b")
# What switch.yml does, on an inventory without gateways, which it refuses.
WITHOUT_GATEWAYS = """
- hosts: gpu-nodes
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: fleet.inference.preflight, tasks_from: facts}
    - ansible.builtin.include_role: {name: fleet.inference.service_switch, tasks_from: decide}
- hosts: gpu-nodes
  gather_facts: false
  serial: 1
  roles: [fleet.inference.service_switch]
"""


class Fleet:
    """An inventory of nodes that are this machine, each with a configuration of its own in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hosts: dict[str, Any] = {}
        (root / "group_vars").symlink_to(ROOT / "group_vars")

    def node(self, name: str, *installed: dict[str, Any]) -> None:
        config = self.root / name / "etc"
        self.hosts[name] = {
            "inference_services": [CHAT],
            "inference_config_root": str(config),
            "inference_state_root": str(self.root / name / "var"),
            "inference_models_path": str(self.root / name / "models"),
        }
        for record in installed:
            folder = config / "services" / record["name"]
            folder.mkdir(parents=True)
            (folder / "service.json").write_text(json.dumps({"schema_version": 1, "units": [], **record}))

    def run(self, playbook: str, *arguments: str, gateways: bool = False) -> subprocess.CompletedProcess[str]:
        groups: dict[str, Any] = {"gpu-nodes": {"hosts": self.hosts}}
        if gateways:
            # Nobody answers there.
            gateway = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
            groups["gateways"] = {"hosts": {"gateway-01": gateway}}
        common = {"ansible_connection": "local", "ansible_become": False, "inference_tier": "cpu"}
        inventory = {"all": {"vars": {**common, "inference_address": "0.0.0.0"}, "children": groups}}
        (self.root / "hosts.yml").write_text(yaml.safe_dump(inventory))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CACHE_PLUGIN": "memory",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        program = str(Path(sys.executable).parent / "ansible-playbook")
        argv = [program, "-i", str(self.root / "hosts.yml"), playbook, "--check", *arguments]
        return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def steps(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the names of the tasks that ran, without their roles."""
    lines = done.stdout.splitlines()
    ran = [line for number, line in enumerate(lines[:-1]) if line.startswith("TASK [") and lines[number + 1]]
    return [line[6 : line.rindex("]")].rpartition(" : ")[2] for line in ran]


def test_a_check_says_how_and_what_to_write_down(fleet: Fleet) -> None:
    fleet.node("gpu-01", {**CHAT, "address": "0.0.0.0", "port": 8005})
    (fleet.root / "switch.yml").write_text(WITHOUT_GATEWAYS)
    done = fleet.run(str(fleet.root / "switch.yml"), *SWITCH, "-e", "way=beside")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "gpu-01: chat (llamacpp, smollm2-135m-instruct, port 8005) becomes chat-2 (llamacpp, qwen3-0.6b, port 8006); "
        "the old one serves until the new one has answered (there is room for both)\n"
    ) in done.stdout
    order = ["Run the service chat-2", "Let running requests finish", "Remove the old service"]
    assert [step for step in steps(done) if step in order] == order
    table = [line.split() for line in done.stdout.splitlines() if line.startswith("    gpu-01  chat")]
    assert table == [
        ["gpu-01", "chat-2", "llamacpp", "qwen3-0.6b", "would", "be", "started", "-"],
        ["gpu-01", "chat", "llamacpp", "smollm2-135m-instruct", "would", "be", "removed", "serving"],
    ]
    assert "    inference_services:\n      - {name: chat-2, backend: llamacpp, model: qwen3-0.6b}\n" in done.stdout
    window = fleet.run(str(fleet.root / "switch.yml"), *SWITCH, "-e", "way=window")
    assert window.returncode == 0, window.stdout + window.stderr
    order = ["Look whether the image is on the node", "Let running requests finish", "Stop the old service"]
    order += ["Run the service chat-2", "Remove the old service"]
    assert [step for step in steps(window) if step in order] == order


def test_without_a_gateway_that_follows_the_old_service_stays(fleet: Fleet) -> None:
    fleet.node("gpu-01", {**CHAT, "address": "0.0.0.0", "port": 8005})
    done = fleet.run("playbooks/switch.yml", *SWITCH, "-e", "way=window", gateways=True)
    assert done.returncode == 2
    assert "gpu-01: chat was not switched, and is what it was before;" in done.stdout
    assert "gateway-01: can't be reached at 127.0.0.1" in done.stdout
    assert "run site.yml for this node when every gateway can be reached" in done.stdout
    assert "Stop the old service" not in done.stdout and "Remove the old service" not in done.stdout


def test_no_node_is_touched_when_one_cannot_be_switched(fleet: Fleet) -> None:
    for name in ("gpu-01", "gpu-02"):
        fleet.node(name, {**CHAT, "address": "0.0.0.0", "port": 8005})
    fleet.hosts["gpu-02"]["inference_services"] = [{**CHAT, "name": "talk"}]
    done = fleet.run("playbooks/switch.yml", *SWITCH, gateways=True)
    assert done.returncode == 2
    assert "gpu-02]: FAILED! => gpu-02: service is 'chat', which the node does not serve; known: talk\n" in done.stdout
    assert "Keep the models in the store" not in done.stdout


def test_a_program_gets_one_document_also_of_what_failed(fleet: Fleet) -> None:
    fleet.node("gpu-01", {**CHAT, "address": "0.0.0.0", "port": 8005})
    fleet.node("gpu-02", {**CHAT, "address": "0.0.0.0", "port": 8005})
    done = fleet.run("playbooks/switch.yml", *SWITCH, "-e", "way=window", "-e", "format=json", gateways=True)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "schema_version": 1,
        "verb": "switch",
        "check": True,
        "nodes": {},
        "not_switched": ["gpu-01", "gpu-02"],
    }
    assert "gpu-01: chat was not switched, and is what it was before;" in done.stderr
