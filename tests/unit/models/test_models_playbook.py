# SPDX-License-Identifier: Apache-2.0
"""playbooks/models.yml, with this machine for the node."""

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
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "inference_address": "0.0.0.0",
        "inference_tier": "cpu",
        "inference_config_root": str(tmp_path / "etc"),
        "inference_models_path": str(tmp_path / "models"),
    }
    groups = {"gpu-nodes": {"hosts": {"gpu-01": None}}, "gateways": {"hosts": {"gateway-01": None}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    file = tmp_path / "models" / "gguf" / "aaa" / "old.gguf"
    file.parent.mkdir(parents=True)
    file.write_text("old weights")
    return tmp_path


def play(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_NOCOLOR": "1",
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    argv = [program, "-i", str(folder / "hosts.yml"), "playbooks/models.yml", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180)


def documented(folder: Path, *arguments: str) -> list[tuple[Any, ...]]:
    done = play(folder, "-e", "format=json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["without_answer"] == []
    return [(row["models"], row["use"], row["done"]) for row in found["models"]]


def test_what_a_store_has_and_lacks_and_what_a_pull_would_bring(folder: Path) -> None:
    listed = play(folder)
    assert listed.returncode == 0 and "changed=0" in listed.stdout, listed.stdout + listed.stderr
    assert "gpu-01  -                      old.gguf" in listed.stdout
    assert documented(folder, "-e", "pull=all", "--check") == [
        ([], "unused", None),
        ([MODEL], "missing", "would be pulled"),
    ]


def test_a_model_is_removed_by_name_and_an_unknown_one_is_refused(folder: Path) -> None:
    wrong = play(folder, "-e", "remove=odl.gguf")
    assert wrong.returncode == 2
    assert "the model is 'odl.gguf', which no store has; did you mean old.gguf? stored: old.gguf\n" in wrong.stdout
    assert documented(folder, "-e", "remove=old.gguf", "--check")[0] == ([], "unused", "would be removed")
    assert (folder / "models" / "gguf" / "aaa" / "old.gguf").exists()
    assert documented(folder, "-e", "remove=unused")[0] == ([], "unused", "removed")
    assert not (folder / "models" / "gguf").exists()
    assert documented(folder, "-e", "remove=unused") == [([MODEL], "missing", None)]


def test_a_model_that_the_plan_does_not_name_can_be_pulled_if_the_catalog_has_it(folder: Path) -> None:
    assert documented(folder, "-e", "pull=gemma-3-1b-it", "--check") == [
        (["gemma-3-1b-it"], "missing", "would be pulled"),
        ([], "unused", None),
        ([MODEL], "missing", None),
    ]
    done = play(folder, "-e", "pull=no-such-model")
    assert done.returncode == 2
    assert "no-such-model" in done.stdout and "inference_models" in done.stdout
