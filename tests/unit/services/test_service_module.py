# SPDX-License-Identifier: Apache-2.0
"""The module's own work: its options agree with its documentation, and no secret reaches the log or the result."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any, Dict, Tuple

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.fleet.inference.plugins.modules import container_service


def call(options: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tuple[Dict[str, Any], str]:
    """The module's result, and what it would write into the node's log."""
    logged = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _self, msg, log_args=None: logged.append(f"{msg} {log_args}"))
    out = io.StringIO()
    with patch_module_args(dict(options, _ansible_check_mode=True)), redirect_stdout(out), pytest.raises(SystemExit):
        container_service.main()
    return json.loads(out.getvalue()), "\n".join(logged)


def test_no_secret_in_log_or_result(options, monkeypatch):
    files = [
        {"name": "a", "content": "line\ncanary-file-1\n", "target": "/a", "secret": True},
        {"name": "b", "content": "plain: 0640\n", "target": "/b"},
    ]
    result, log = call(options(files=files, state="absent"), monkeypatch)
    assert "Invoked with" in log
    assert "canary" not in log and "canary" not in json.dumps(result)
    # ansible-core 2.21 leaves the invocation out.
    if "invocation" in result:
        shown = result["invocation"]["module_args"]["files"]
        assert (shown[1]["content"], shown[1]["mode"]) == ("plain: 0640\n", "0640")
    assert (result["changed"], result["actions"], result["unit"]) == (False, [], "inference-llamacpp.service")


def test_refusal_is_one_sentence(options, monkeypatch):
    result, _ = call(options(env={"A": "x\ny"}), monkeypatch)
    assert result["failed"] and result["actions"] == []
    assert ": service llamacpp: env.A has a line break" in result["msg"]


def test_documentation_agrees_with_the_options():
    def compare(documented: Dict[str, Any], spec: Dict[str, Any]) -> None:
        assert set(documented) == set(spec)
        for name, option in documented.items():
            found = spec[name]
            for key in ("type", "required", "default", "choices", "elements"):
                assert option.get(key) == found.get(key), (name, key)
            compare(option.get("suboptions") or {}, found.get("options") or {})

    compare(yaml.safe_load(container_service.DOCUMENTATION)["options"], container_service.ARGUMENTS)
