# SPDX-License-Identifier: Apache-2.0
"""The action plugin, run by ansible-playbook on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONTENT = b"GGUF" + os.urandom(10_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Run one task per set of arguments on a host called gpu-01; return the results and the output."""

    def run(*calls: dict[str, Any], check: bool = False) -> tuple[list[dict[str, Any]], str]:
        tasks = []
        for number, call in enumerate(calls):
            arguments = {"path": str(tmp_path / "store"), "cache_path": str(tmp_path / "cache"), **call}
            name = f"result_{number}"
            tasks += [
                {"fleet.inference.model_store": arguments, "register": name, "failed_when": False},
                {"ansible.builtin.copy": {"content": "{{ " + name + " | to_json }}", "dest": str(tmp_path / name)}},
            ]
            tasks[-1]["check_mode"] = False
        (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "gpu-01", "gather_facts": False, "tasks": tasks}]))
        inventory = f"gpu-01 ansible_connection=local ansible_python_interpreter={sys.executable}"
        (tmp_path / "hosts").write_text(inventory + "\n")
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(tmp_path / "hosts")]
        command += ["--diff", *(["--check"] if check else []), str(tmp_path / "play.yml")]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment["ANSIBLE_CACHE_PLUGIN_CONNECTION"] = str(tmp_path / "facts")
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((tmp_path / f"result_{number}").read_text()) for number in range(len(calls))], done.stdout

    return run


def test_carried_file(play: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(CONTENT)
    target = tmp_path / "store" / "m" / "weights.gguf"
    model = {"path": str(target), "size_bytes": len(CONTENT), "sha256": SHA256, "source": {"file": str(file)}}

    [predicted], output = play({"models": [model]}, check=True)
    assert predicted["changed"] and predicted["added"] == [str(target)] and not target.parent.exists()
    assert f"+{target} (10 kB, sha256 {SHA256})" in output

    wrong = {**model, "path": str(tmp_path / "elsewhere.gguf")}
    lost = {**model, "path": str(target.with_name("lost.gguf")), "source": {"file": str(tmp_path / "lost")}}
    results, output = play(
        {"models": [model]}, {"models": [model]}, {"models": []}, {"models": [wrong]}, {"models": [lost]}
    )
    first, second, nothing, outside, missing = results
    assert first["changed"] and target.read_bytes() == CONTENT
    assert "gpu-01: weights.gguf 10 kB from the controller" in output
    assert second["changed"] is False and second["missing"] == []
    assert nothing["changed"] is False
    assert outside["msg"].startswith("gpu-01: elsewhere.gguf: path ") and "not below the model store" in outside["msg"]
    assert missing["msg"] == (
        f"gpu-01: the controller has no file {tmp_path / 'lost'}; correct the model's source.file"
    )
