# SPDX-License-Identifier: Apache-2.0
"""Publishing to gateways that can't be reached, run by ansible-playbook: no node is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
PUBLISH = {"ansible.builtin.include_role": {"name": "fleet.inference.gateway", "tasks_from": "publish"}}
PLAN = {"node": "{{ inventory_hostname }}", "address": "10.0.0.11", "services": []}


def test_each_gateway_that_is_down_is_one_sentence_and_the_rest_of_the_nodes_stay_as_they_are(tmp_path: Path) -> None:
    # Nothing listens on port 1, so SSH is refused at once.
    down = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory = {
        "gateways": {"hosts": {"gateway-01": down, "gateway-02": down}},
        "gpu-nodes": {
            "hosts": {"gpu-01": None, "gpu-02": None},
            "vars": {"ansible_connection": "local", "inference_plan": PLAN},
        },
    }
    play = {"hosts": "gpu-nodes", "gather_facts": False, "serial": 1, "tasks": [PUBLISH]}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": inventory}}))
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(tmp_path / "hosts.yml")]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_CACHE_PLUGIN_CONNECTION"] = str(tmp_path / "facts")
    done = subprocess.run(
        [*command, str(tmp_path / "play.yml")], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    for name in ("gateway-01", "gateway-02"):
        assert (
            f"{name}: can't be reached at 127.0.0.1 (Connection refused), so nothing was published to it; "
            "bring it up and run site.yml again, or take it out of the group gateways"
        ) in said
    assert said.count("UNREACHABLE!") == 2
    assert "gpu-02" not in done.stdout.partition("PLAY RECAP")[2]
