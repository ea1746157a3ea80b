# SPDX-License-Identifier: Apache-2.0
"""What a person sees when something is refused, of a single command's result, and with -v."""

from __future__ import annotations

import json
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
# A module that answers what it is given.
ECHO = """#!/usr/bin/python
import json, sys
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({"answer": {"type": "dict"}, "fails": {"type": "bool"}})
(module.fail_json if module.params["fails"] else module.exit_json)(**module.params["answer"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "more.yml").write_text("- name: Say it\n  ansible.builtin.debug:\n    msg: one line\n")
    return tmp_path


def run(program: str, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_LIBRARY": str(folder / "library"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        # ansible.cfg's bin_ansible_callbacks.
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        **settings,
    }
    argv = [str(Path(sys.executable).parent / program), "-i", "localhost,", "-c", "local", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def play(folder: Path, *arguments: str) -> str:
    done = run("ansible-playbook", folder, str(folder / "play.yml"), *arguments)
    assert done.returncode == 2
    return done.stdout + done.stderr


def command(folder: Path, answer: dict[str, object], *arguments: str, fails: bool = False, **settings: str) -> str:
    (folder / "library").mkdir(exist_ok=True)
    (folder / "library" / "echo.py").write_text(ECHO)
    given = json.dumps({"answer": answer, "fails": fails})
    done = run("ansible", folder, "localhost", "-m", "echo", "-a", given, *arguments, **settings)
    assert done.returncode == (2 if fails else 0), done.stderr
    return done.stdout


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


def test_a_summary_is_printed_by_a_single_command(folder: Path) -> None:
    assert command(folder, {"summary": ["GPU 0  A", "", "GPU 1  B"], "changed": False, "ansible_facts": {"a": 1}}) == (
        "localhost | SUCCESS\n    GPU 0  A\n    \n    GPU 1  B\n"
    )
    assert command(folder, {"summary": ["one"], "changed": True}) == "localhost | CHANGED\n    one\n"


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ({"summary": ["one"], "facts": {"a": 1}, "changed": False}, ("-v",)),
        ({"value": 1, "changed": True}, ()),
        ({"summary": "no list", "changed": False}, ()),
        ({"summary": [], "changed": False}, ()),
    ],
)
def test_a_single_command_prints_all_else_as_ansible_does(
    folder: Path, answer: dict[str, object], arguments: tuple[str, ...]
) -> None:
    printed = command(folder, answer, *arguments)
    assert "localhost | " in printed
    assert printed == command(folder, answer, *arguments, ANSIBLE_LOAD_CALLBACK_PLUGINS="0")


def test_a_single_command_that_fails_says_why(folder: Path) -> None:
    assert command(folder, {"msg": "no such root"}, fails=True) == "localhost | FAILED! => no such root\n"


def test_a_summary_is_nothing_special_in_a_playbook(folder: Path) -> None:
    (folder / "library").mkdir()
    (folder / "library" / "echo.py").write_text(ECHO)
    tasks = [{"name": "Say", "echo": {"answer": {"summary": ["one line"], "changed": False}}}]
    text = json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}])
    (folder / "facts.yml").write_text(text)
    output = run("ansible-playbook", folder, str(folder / "facts.yml")).stdout
    assert "PLAY [localhost]" in output and "TASK [Say]" in output and "PLAY RECAP" in output
    assert "ok: [localhost]\n" in output and "one line" not in output


DOCUMENT = {"nodes": [{"name": "gpü-01", "size": 1}], "missing": None}
FORMATS = """
- name: Answer
  hosts: localhost
  gather_facts: false
  vars:
    output_formats: [text, json]
  tasks:
    - name: Say a text
      ansible.builtin.debug:
        msg: only a text
    - name: Answer programs
      ansible.builtin.debug:
        msg: "{{ document }}"
    - name: Refuse
      ansible.builtin.fail:
        msg: refused at last
"""


def formats(folder: Path, play: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "formats.yml").write_text(play)
    given = json.dumps({"document": DOCUMENT})
    return run("ansible-playbook", folder, str(folder / "formats.yml"), "-e", given, *arguments)


def test_programs_get_the_document_and_people_the_rest(folder: Path) -> None:
    done = formats(folder, FORMATS, "-e", "format=json")
    assert json.loads(done.stdout) == DOCUMENT
    assert "gpü-01" in done.stdout
    assert done.returncode == 2
    for words in ("PLAY [Answer]", "TASK [Say a text]", "only a text", "refused at last", "PLAY RECAP"):
        assert words in done.stderr


@pytest.mark.parametrize("arguments", [(), ("-e", "format=text"), ("-e", "format=yaml")])
def test_people_get_all_on_standard_output(folder: Path, arguments: tuple[str, ...]) -> None:
    done = formats(folder, FORMATS, *arguments)
    assert done.stdout.startswith("\nPLAY [Answer]")
    assert "PLAY RECAP" in done.stdout and "refused at last" in done.stdout
    assert "PLAY" not in done.stderr


def test_a_play_that_offers_no_formats_has_none(folder: Path) -> None:
    play = FORMATS.replace("output_formats", "other")
    done = formats(folder, play, "-e", "format=json")
    assert "PLAY [Answer]" in done.stdout and "PLAY RECAP" in done.stdout


def test_a_play_behind_one_with_formats_prints_as_ever(folder: Path) -> None:
    play = FORMATS.replace("Refuse", "Go on").replace("fail", "debug") + FORMATS.replace("output_formats", "other")
    done = formats(folder, play, "-e", "format=json")
    document, _end, rest = done.stdout.partition("\n}\n")
    assert json.loads(document + "}") == DOCUMENT
    assert rest.startswith("\nPLAY [Answer]") and "PLAY RECAP" in rest
