# SPDX-License-Identifier: Apache-2.0
"""The module and its action plugin, run by Ansible itself."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible_collections.fleet.inference.plugins.action import gpu_facts
from ansible_collections.fleet.inference.plugins.plugin_utils.nvidia_ml_py import carried, trimmed
from documented_facts import check, documented

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
    check(facts)
    assert result["changed"] is False
    assert facts["schema_version"] == 1
    assert facts["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["cpu"]["architecture"] == os.uname().machine
    assert facts["storage"]["free_bytes"] > 0
    assert any(str(facts["cpu"]["cores"]) in line for line in result["summary"])
    assert "_pynvml" not in result.get("invocation", {}).get("module_args", {})


def test_recorded_root_in_check_mode(machine: Any) -> None:
    machine.gpu("0000:01:00.0", 0x10DE, driver="vfio-pci")
    result = run("--check", "-a", f"root={machine.root}")
    (device,) = result["ansible_facts"]["gpu"]["devices"]
    assert device["unusable_reason"] == "bound to vfio-pci"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("timeout=0", "timeout is 0, it must be at least 1 second."),
        ("timeout=soon", "argument 'timeout' is of type str and we were unable to convert to int"),
        ("root=/no/such/root", "root is /no/such/root, which is no directory; name a recorded machine's."),
        ("root=/etc/passwd", "root is /etc/passwd, which is no directory; name a recorded machine's."),
        ("nvidia_smi_xml=/no", "nvidia_smi_xml is /no, which is no file; give the tool's recorded output."),
        ("amd_smi_json=/etc", "amd_smi_json is /etc, which is no file; give the tool's recorded output."),
        ("wake=perhaps", "argument 'wake' is of type str and we were unable to convert to bool"),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    result = run("-a", arguments)
    assert "ansible_facts" not in result
    assert message in result["msg"]
    assert "Traceback" not in json.dumps(result)


@pytest.fixture
def action(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The action plugin on a connection of our own; `calls` are the modules' arguments."""
    plugin = gpu_facts.ActionModule(
        task=SimpleNamespace(args={"timeout": 3}, async_val=0, check_mode=False, environment=[], action="gpu_facts"),
        connection=MagicMock(),
        play_context=MagicMock(),
        loader=MagicMock(),
        templar=MagicMock(),
        shared_loader_obj=MagicMock(),
    )
    plugin.calls = []

    def execute(module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        plugin.calls.append(module_args)
        return {"changed": False, "invocation": {"module_args": dict(module_args)}, "failed": True, "msg": "no"}

    monkeypatch.setattr(plugin, "_execute_module", execute)
    return plugin


def test_one_execution_that_carries_nvidia_ml_py(action: Any) -> None:
    result = action.run(None, {})
    (arguments,) = action.calls
    assert set(arguments) == {"timeout", "_pynvml"}
    source = zlib.decompress(base64.b64decode(arguments["_pynvml"])).decode()
    assert "def nvmlDeviceGetHandleByIndex" in source
    # What travels with every module is a small part of the whole.
    assert len(arguments["_pynvml"]) < 40_000
    assert result["invocation"]["module_args"] == {"timeout": 3}
    assert result["msg"] == "no" and "summary" not in result


def test_controller_without_nvidia_ml_py(action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    carried.cache_clear()
    try:
        action.run(None, {})
    finally:
        carried.cache_clear()
    assert action.calls == [{"timeout": 3, "_pynvml": None}]


SOURCE = """
import os
NVML_ERROR_LOST = 1
NVML_UNUSED = 2
class NVMLError(Exception):
    pass
NVMLError.table = {}
class c_nvmlPci_t:
    pass
def helper():
    return c_nvmlPci_t
def nvmlUsed():
    "Documentation."
    return helper()
def nvmlUnused():
    pass
"""


def test_what_is_trimmed() -> None:
    left = trimmed(SOURCE, 'ask("nvmlUsed")')
    for kept in ("import os", "NVML_ERROR_LOST", "class NVMLError", "NVMLError.table", "c_nvmlPci_t", "helper"):
        assert kept in left
    assert "nvmlUnused" not in left and "NVML_UNUSED" not in left
    exec(compile(left, "trimmed", "exec"), {})
