# SPDX-License-Identifier: Apache-2.0
"""What is installed on a node, and in which state it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services import installed
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import (
    CommandNotFound,
    Completed,
    Runner,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import LOCK_WAIT_SECONDS


class SystemctlStandIn(Runner):
    """Answers as `systemctl show` does for several units (systemd 252), and as journalctl."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.calls: list[list[str]] = []

    def run(self, argv: Sequence[str], timeout: float | None = None) -> Completed:
        self.calls.append(list(argv))
        if argv[0] == "journalctl":
            return Completed(0, "2026-11-23T17:00:00+0000 inference-chat[7]: loaded \n\n")
        blocks = [
            f"Id={unit}\nActiveState={self.states.get(unit[len('inference-') : -len('.service')], 'inactive')}\n"
            for unit in argv[3:]
        ]
        return Completed(0, "\n".join(blocks))


class NoSystemd(Runner):
    def run(self, argv: Sequence[str], timeout: float | None = None) -> Completed:
        raise CommandNotFound(argv[0])


def install(root: Path, name: str, text: str) -> None:
    folder = root / "services" / name
    folder.mkdir(parents=True)
    (folder / "service.json").write_text(text)


def test_every_engine_s_service_is_read_and_no_replica_of_the_gateway(tmp_path: Path) -> None:
    record = {"name": "chat", "backend": "vllm", "model": "qwen3-8b", "address": "10.0.0.1", "port": 8003}
    install(tmp_path, "chat", json.dumps(record))
    install(tmp_path, "many", json.dumps({"backend": "ollama", "model": "a", "models": ["a", "b"]}))
    install(tmp_path, "broken", "{")
    install(tmp_path, "litellm-1", json.dumps({"backend": "litellm"}))
    (tmp_path / "services" / "begun").mkdir()
    found = {item["name"]: item for item in installed.read_services(str(tmp_path))}
    assert sorted(found) == ["begun", "broken", "chat", "many"]
    assert found["chat"] == {
        "name": "chat",
        "backend": "vllm",
        "models": ["qwen3-8b"],
        "address": "10.0.0.1",
        "port": 8003,
    }
    assert found["many"]["models"] == ["a", "b"]
    assert (found["broken"]["backend"], found["broken"]["models"]) == (None, [])


def test_a_node_without_services(tmp_path: Path) -> None:
    assert installed.read_services(str(tmp_path)) == []
    assert installed.states([], NoSystemd()) == {}


def test_states_come_from_one_call() -> None:
    runner = SystemctlStandIn(a="active", b="activating", c="failed", d="deactivating")
    assert installed.states(["a", "b", "c", "d", "e"], runner) == {
        "a": "serving",
        "b": "starting",
        "c": "failed",
        "d": "stopping",
        "e": "stopped",
    }
    assert len(runner.calls) == 1
    assert installed.states(["a"], NoSystemd()) == {"a": "unknown"}


def test_last_lines() -> None:
    runner = SystemctlStandIn()
    assert installed.last_lines("chat", 5, runner) == ["2026-11-23T17:00:00+0000 inference-chat[7]: loaded"]
    assert {"--unit=inference-chat.service", "--lines=5"} <= set(runner.calls[0])
    assert installed.last_lines("chat", 5, NoSystemd()) == []


@pytest.mark.parametrize("verb", ["stop", "start", "absent"])
def test_a_verb_by_name_waits_as_long_as_the_installed_unit_may_take(
    node: Any, options: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    node.apply(options(stop_timeout_seconds=900, units=["GPU-1"]))
    paths = {key: options()[key] for key in ("config_root", "state_root", "unit_dir")}
    if verb == "start":
        node.apply({"name": "llamacpp", "state": "stopped", **paths})
    limit = 900
    if verb == "start":
        limit = int(re.findall(r"^TimeoutStartSec=(\d+)$", node.unit.read_text(), re.MULTILINE)[0])
        assert limit > LOCK_WAIT_SECONDS
    waited: dict[str, float] = {}
    run = node.run

    def watched(argv: Sequence[str], timeout: float | None = None) -> Completed:
        if argv[-1] == node.unit.name:
            waited[argv[1]] = timeout or 0
        return run(argv, timeout)

    monkeypatch.setattr(node, "run", watched)
    state = {"stop": "stopped", "start": "started", "absent": "absent"}[verb]
    node.apply({"name": "llamacpp", "state": state, **paths})
    assert waited["start" if verb == "start" else "stop"] > limit
