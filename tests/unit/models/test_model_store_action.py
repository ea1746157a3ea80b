# SPDX-License-Identifier: Apache-2.0
"""The action plugin, run by ansible-playbook on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_sources import COMMIT, FILES, HubStandIn, library_model, repository

ROOT = Path(__file__).resolve().parents[3]
CONTENT = b"GGUF" + os.urandom(10_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Run one task per set of arguments on a host called gpu-01; return the results and the output."""

    def run(
        *calls: dict[str, Any], check: bool = False, module: str = "model_store"
    ) -> tuple[list[dict[str, Any]], str]:
        tasks = []
        for number, call in enumerate(calls):
            arguments = {"path": str(tmp_path / "store"), "cache_path": str(tmp_path / "cache"), **call}
            name = f"result_{number}"
            tasks += [
                {f"fleet.inference.{module}": arguments, "register": name, "failed_when": False},
                {"ansible.builtin.copy": {"content": "{{ " + name + " | to_json }}", "dest": str(tmp_path / name)}},
            ]
            tasks[-1]["check_mode"] = False
        (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "gpu-01", "gather_facts": False, "tasks": tasks}]))
        inventory = f"gpu-01 ansible_connection=local ansible_python_interpreter={sys.executable}"
        (tmp_path / "hosts").write_text(inventory + "\n")
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(tmp_path / "hosts")]
        command += ["-vvv", "--diff", *(["--check"] if check else []), str(tmp_path / "play.yml")]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment["no_proxy"] = "*"
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


TOKEN = "hf_planted"


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    hub = HubStandIn(gated=True, token=TOKEN)
    yield hub
    hub.close()


def test_repository_downloaded_by_the_node(play: Any, hub: HubStandIn, tmp_path: Path) -> None:
    root = tmp_path / "store"
    call = {"models": [repository(root)], "endpoint": hub.url, "token": TOKEN, "parallel": 2}
    [predicted], output = play(call, check=True)
    snapshot = root / "huggingface" / "models--org--name" / "snapshots" / COMMIT
    key = f"{root}/huggingface/models--org--name@main"
    assert predicted["changed"] and predicted["added"] == [key] and not root.exists()
    assert f"+org/name at {COMMIT} (4 files, 1.0 MB)" in output and TOKEN not in output

    (first, second), output = play(call, call)
    assert (first["added"], second["changed"]) == ([key], False)
    assert (snapshot / "config.json").read_bytes() == FILES["config.json"]
    assert "gpu-01: org/name 1.0 MB downloaded by the node" in output
    assert TOKEN not in output and TOKEN not in json.dumps([first, second])


def test_refusals_change_nothing(play: Any, hub: HubStandIn, tmp_path: Path) -> None:
    root = tmp_path / "store"
    env_file = tmp_path / "huggingface.env"
    env_file.write_text(f"HF_TOKEN={TOKEN}\n")
    env_file.chmod(0o644)
    gated = {"models": [repository(root)]}
    (none, open_file, revision), output = play(
        {**gated, "endpoint": hub.url, "token_file": str(tmp_path / "not-there")},
        {**gated, "endpoint": hub.url, "token_file": str(env_file)},
        {"models": [repository(root, revision="v9")], "endpoint": hub.url, "token": TOKEN},
        check=True,
    )
    assert none["msg"].startswith(
        "gpu-01: org/name asks for its licence to be accepted and there is no token; accept it at "
    )
    assert open_file["msg"] == (
        f"gpu-01: {env_file} on the controller can be read by others than its owner; run chmod 600 {env_file}"
    )
    assert revision["msg"].startswith(f"gpu-01: org/name has no revision v9 at {hub.url}; correct revision")
    assert not root.exists() and TOKEN not in output


def test_from_one_node_over_the_controller_to_another(play: Any, hub: HubStandIn, tmp_path: Path) -> None:
    """The first store is filled by the controller, with a token in an env file; the second one from the first."""
    env_file = tmp_path / "huggingface.env"
    env_file.write_text(f"# from huggingface.co/settings/tokens\nexport HF_TOKEN='{TOKEN}'\n")
    env_file.chmod(0o600)
    stores = [tmp_path / "store", tmp_path / "other"]
    asked = {"endpoint": hub.url, "token_file": str(env_file), "via": "controller"}
    (first, second), output = play(*([{"models": [repository(stores[0])], **asked}] * 2))
    assert first["changed"] and second["changed"] is False
    assert "gpu-01: org/name 1.0 MB from the controller" in output and TOKEN not in output

    collect = {"models": [repository(stores[0]), library_model(stores[0])], "cache_path": str(tmp_path / "fresh")}
    (collected, again), output = play(collect, collect, module="model_collect")
    assert collected["collected"] == [f"{stores[0]}/huggingface/models--org--name@main"]
    assert again["changed"] is False

    hub.close()
    call = {"path": str(stores[1]), "cache_path": str(tmp_path / "fresh"), "via": "gpu-02", "retries": 0}
    (there, absent), output = play(
        {**call, "models": [repository(stores[1])]}, {**call, "models": [library_model(stores[1])]}
    )
    assert there["changed"]
    snapshot = stores[1] / "huggingface" / "models--org--name" / "snapshots" / COMMIT
    assert (snapshot / "tokenizer" / "vocab file.txt").read_bytes() == FILES["tokenizer/vocab file.txt"]
    assert absent["msg"] == (
        "gpu-01: gpu-02 has no tiny:1b in its model store; set model_store_via to another node, node or controller"
    )


def test_removal_on_request(play: Any, tmp_path: Path) -> None:
    old = tmp_path / "store" / "gguf" / "abc" / "old.gguf"
    old.parent.mkdir(parents=True)
    old.write_bytes(CONTENT)
    [kept], _output = play({"models": []})
    assert kept["changed"] is False and old.exists()
    [predicted], output = play({"models": [], "prune": True}, check=True)
    assert predicted["changed"] and predicted["removed"] == [str(old)] and old.exists() and f"-{old}" in output
    (removed, again), _output = play(*([{"models": [], "prune": True}] * 2))
    assert removed["removed"] == [str(old)] and not old.exists() and again["changed"] is False
