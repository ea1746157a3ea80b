# SPDX-License-Identifier: Apache-2.0
"""Merging Docker's daemon.json, through the module itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.fleet.inference.plugins.module_utils.runtime import daemon
from ansible_collections.fleet.inference.plugins.modules import docker_daemon


class Ended(Exception):
    """Carries what the module would have printed."""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the module with no dockerd and no systemctl on the path."""

    def end(self: Any, **result: Any) -> None:
        raise Ended(result)

    def fail(self: Any, msg: str, **result: Any) -> None:
        raise Ended({"failed": True, "msg": msg, **result})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", end)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", fail)
    monkeypatch.setattr(basic.AnsibleModule, "get_bin_path", lambda self, name, *a, **k: programs.get(name))
    programs: dict[str, str] = {}

    def run(options: dict[str, Any], check: bool = False) -> dict[str, Any]:
        arguments = {"options": options, "path": str(tmp_path / "docker" / "daemon.json"), "_ansible_check_mode": check}
        arguments["_ansible_remote_tmp"] = str(tmp_path / "tmp")
        with patch_module_args(arguments), pytest.raises(Ended) as ended:
            docker_daemon.main()
        return ended.value.args[0]

    run.programs = programs  # type: ignore[attr-defined]
    run.file = tmp_path / "docker" / "daemon.json"  # type: ignore[attr-defined]
    return run


def test_merge_keeps_other_owners_and_grows_lists() -> None:
    current = {"runtimes": {"nvidia": {"path": "x"}}, "insecure-registries": ["a:1"], "log-opts": {"labels": "l"}}
    wanted = {"insecure-registries": ["b:2", "a:1"], "log-opts": {"max-size": "10m"}, "live-restore": True}
    assert daemon.merge(current, wanted) == {
        "runtimes": {"nvidia": {"path": "x"}},
        "insecure-registries": ["a:1", "b:2"],
        "log-opts": {"labels": "l", "max-size": "10m"},
        "live-restore": True,
    }
    assert current["insecure-registries"] == ["a:1"]


def test_merge_null_removes() -> None:
    assert daemon.merge({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": None}, "e": None}) == {"b": {"d": 3}}


@pytest.mark.parametrize(
    ("after", "action"),
    [
        ({"live-restore": True}, "none"),
        ({"live-restore": False}, "reload"),
        ({"live-restore": True, "insecure-registries": ["a:1"], "debug": True}, "reload"),
        ({"live-restore": True, "features": {"cdi": True}}, "restart"),
        ({"live-restore": True, "debug": True, "log-driver": "local"}, "restart"),
        ({}, "reload"),
    ],
)
def test_needed_action(after: dict[str, Any], action: str) -> None:
    assert daemon.needed_action({"live-restore": True}, after) == action


def test_new_file_then_nothing(call: Any) -> None:
    predicted = call({"live-restore": True}, check=True)
    assert predicted["changed"] and predicted["diff"]["before"] == "" and not call.file.exists()
    made = call({"live-restore": True})
    assert made["changed"] and made["diff"] == predicted["diff"] and "backup_file" not in made
    assert json.loads(call.file.read_text()) == {"live-restore": True}
    assert call.file.stat().st_mode & 0o777 == 0o644
    assert call({"live-restore": True})["changed"] is False


def test_existing_file_is_backed_up_and_keeps_its_keys(call: Any) -> None:
    call.file.parent.mkdir()
    call.file.write_text('{"data-root": "/srv/docker"}')
    result = call({"live-restore": True})
    assert json.loads(call.file.read_text()) == {"data-root": "/srv/docker", "live-restore": True}
    assert json.loads(Path(result["backup_file"]).read_text()) == {"data-root": "/srv/docker"}
    assert result["changed_options"] == ["live-restore"] and result["action"] == "reload"


@pytest.mark.parametrize("text", ["{not json", "[1]"])
def test_broken_file_stays(call: Any, text: str) -> None:
    call.file.parent.mkdir()
    call.file.write_text(text)
    result = call({"live-restore": True})
    assert result["failed"] and str(call.file) in result["msg"] and "nothing was changed" in result["msg"]
    assert "\n" not in result["msg"] and call.file.read_text() == text


def _program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    path.chmod(0o755)
    return str(path)


def test_refused_by_dockerd(call: Any, tmp_path: Path) -> None:
    call.programs["dockerd"] = _program(tmp_path / "dockerd", "sys.exit('unable to configure: unknown option: colour')")
    result = call({"colour": "blue"}, check=True)
    assert result["failed"] and "unknown option: colour" in result["msg"] and not call.file.exists()


def test_old_dockerd_cannot_validate(call: Any, tmp_path: Path) -> None:
    call.programs["dockerd"] = _program(tmp_path / "dockerd", "sys.exit('unknown flag: --validate')")
    assert call({"live-restore": True})["changed"]


def test_old_file_returns_when_docker_does_not_restart(call: Any, tmp_path: Path) -> None:
    call.file.parent.mkdir()
    call.file.write_text('{"debug": true}')
    log = tmp_path / "log"
    call.programs["systemctl"] = _program(
        tmp_path / "systemctl",
        f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        f"bad = 'log-driver' in open({str(call.file)!r}).read()\n"
        "sys.exit(1 if sys.argv[1] == 'restart' and bad else 0)",
    )
    result = call({"log-driver": "nonsense"})
    assert result["failed"] and "didn't restart" in result["msg"] and "doesn't start" not in result["msg"]
    assert json.loads(call.file.read_text()) == {"debug": True}
    assert [file.name for file in call.file.parent.iterdir()] == ["daemon.json"]
    assert [line for line in log.read_text().splitlines() if line.startswith("restart")] == [
        "restart docker.service"
    ] * 2


def test_reload_only(call: Any, tmp_path: Path) -> None:
    call.file.parent.mkdir()
    call.file.write_text("{}")
    log = tmp_path / "log"
    call.programs["systemctl"] = _program(
        tmp_path / "systemctl", f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    )
    assert call({"insecure-registries": ["registry.example:5000"]})["action"] == "reload"
    assert "reload docker.service" in log.read_text() and "\nrestart" not in log.read_text()
