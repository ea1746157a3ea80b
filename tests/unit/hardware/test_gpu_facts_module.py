# SPDX-License-Identifier: Apache-2.0
"""The module and its action plugin, run by Ansible itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.action.gpu_facts import ActionModule

PROJECT = Path(__file__).resolve().parents[3]
ANSIBLE = Path(sys.executable).parent / "ansible"


def run(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Call the module on this machine and return its result."""
    command = [str(ANSIBLE), "localhost", "-i", "localhost,", "-c", "local", "-m", "fleet.inference.gpu_facts"]
    variables = {
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [*command, "-e", f"ansible_python_interpreter={sys.executable}", *arguments],
        cwd=PROJECT,
        env={**os.environ, **variables, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    match = re.search(r"=> (\{.*\})", done.stdout, re.DOTALL)
    assert match, done.stdout + done.stderr
    return json.loads(match.group(1))


def documented() -> dict[str, Any]:
    """The documented fields of the facts."""
    source = (PROJECT / "plugins/modules/gpu_facts.py").read_text()
    text = source.partition('RETURN = r"""')[2].partition('"""')[0]
    return yaml.safe_load(text)["ansible_facts"]["contains"]["gpu"]["contains"]


def test_every_field_is_documented_with_its_type() -> None:
    known = {"description", "type", "returned", "sample", "elements", "contains"}

    def check(fields: dict[str, Any]) -> None:
        for name, field in fields.items():
            assert set(field) <= known and {"description", "type", "returned"} <= set(field), name
            check(field.get("contains", {}))

    check(documented())


def test_this_machine() -> None:
    result = run()
    facts = result["ansible_facts"]["gpu"]
    assert result["changed"] is False
    assert facts["schema_version"] == 1
    assert facts["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["cpu"]["architecture"] == os.uname().machine
    assert facts["storage"]["free_bytes"] > 0
    assert set(facts) == set(documented())
    assert not [key for key in result if "pynvml" in key]


def test_recorded_root_in_check_mode(machine: Any) -> None:
    machine.gpu("0000:01:00.0", 0x10DE, driver="vfio-pci")
    result = run("--check", "-a", f"root={machine.root}")
    facts = result["ansible_facts"]["gpu"]
    (device,) = facts["devices"]
    assert device["unusable_reason"] == "bound to vfio-pci"
    fields = documented()["devices"]["contains"]
    assert set(device) == set(fields)


@pytest.fixture
def action(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The action plugin on a connection of our own; `calls` are the modules' arguments."""
    plugin = ActionModule(
        task=SimpleNamespace(args={"timeout": 3}, async_val=0, check_mode=False, environment=[], action="gpu_facts"),
        connection=MagicMock(),
        play_context=MagicMock(),
        loader=MagicMock(),
        templar=MagicMock(),
        shared_loader_obj=MagicMock(),
    )
    plugin._connection._shell.tmpdir = "/tmp/remote"
    plugin._connection._shell.join_path = "{}/{}".format
    plugin.calls = []

    def execute(module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        plugin.calls.append(module_args)
        if plugin.wanted and module_args.get("_pynvml_offered"):
            return {"changed": False, "pynvml_wanted": True}
        return {"changed": False, "invocation": {"module_args": dict(module_args)}, "ansible_facts": {"gpu": {}}}

    monkeypatch.setattr(plugin, "_execute_module", execute)
    for name in ("_transfer_file", "_fixup_perms2", "_remove_tmp_path"):
        monkeypatch.setattr(plugin, name, MagicMock())
    return plugin


def test_one_execution_where_nvml_cannot_be_asked(action: Any) -> None:
    action.wanted = False
    result = action.run(None, {})
    assert action.calls == [{"timeout": 3, "_pynvml_offered": True}]
    assert result["invocation"]["module_args"] == {"timeout": 3}
    action._transfer_file.assert_not_called()


def test_nvidia_ml_py_is_carried_and_taken_away(action: Any) -> None:
    action.wanted = True
    result = action.run(None, {})
    assert action.calls[1:] == [{"timeout": 3, "_pynvml": "/tmp/remote/pynvml.py"}]
    assert result["ansible_facts"] == {"gpu": {}} and "pynvml_wanted" not in result
    assert Path(action._transfer_file.call_args.args[0]).name == "pynvml.py"
    action._remove_tmp_path.assert_called_once_with("/tmp/remote")


def test_controller_without_nvidia_ml_py(action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action, "_controller_pynvml", lambda: None)
    action.wanted = True
    action.run(None, {})
    assert action.calls == [{"timeout": 3, "_pynvml_offered": False}]


def test_bad_timeout() -> None:
    assert run("-a", "timeout=0")["msg"] == "timeout is 0, it must be at least 1 second."
