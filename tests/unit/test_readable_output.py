# SPDX-License-Identifier: Apache-2.0
"""What a person sees when something is refused, and with -v."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "node: llamacpp_parallel is 'many' (text); give a whole number, a sentence longer than one line of 80"
PLAYBOOK = f"""
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Include something
      ansible.builtin.include_tasks: more.yml
    - name: Refuse
      ansible.builtin.fail:
        msg: "{SENTENCE}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "more.yml").write_text("- name: Say it\n  ansible.builtin.debug:\n    msg: one line\n")
    return tmp_path


def play(folder: Path, *arguments: str) -> str:
    program = Path(sys.executable).parent / "ansible-playbook"
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CACHE_PLUGIN": "memory"}
    argv = [str(program), "-i", "localhost,", "-c", "local", str(folder / "play.yml"), *arguments]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stdout + done.stderr


def test_a_refusal_is_one_line_and_said_once(folder: Path) -> None:
    output = play(folder)
    assert f"fatal: [localhost]: FAILED! => {SENTENCE}\n" in output
    assert output.count("llamacpp_parallel") == 1
    assert "ok: [localhost] => one line\n" in output
    assert "included:" not in output
    assert "Include something" not in output


def test_verbose_output_is_ansibles_own(folder: Path) -> None:
    output = play(folder, "-v")
    assert "included:" in output
    assert "[ERROR]" in output
