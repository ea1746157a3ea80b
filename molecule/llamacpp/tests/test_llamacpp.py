# SPDX-License-Identifier: Apache-2.0
"""A llama.cpp service on a node: it answers, it is locked in, and it comes back when it is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

UNIT = "inference-llamacpp"
PORT = 8005


@pytest.fixture
def url(address: str) -> str:
    """Where the service answers."""
    return f"http://{address}:{PORT}"


@pytest.fixture
def chat(variables: dict[str, Any]) -> dict[str, Any]:
    """A question of a few tokens."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": variables["llamacpp_model"], "messages": question, "max_tokens": 8}


@pytest.fixture
def answers(ask: Any, url: str, chat: dict[str, Any]) -> Callable[[], bool]:
    """Whether a question is answered."""
    return lambda: ask(f"{url}/v1/chat/completions", body=chat)[0] == 200


@pytest.fixture
def on_gpu(variables: dict[str, Any]) -> bool:
    """Whether the plan put the service on a GPU, which is Mesa's software device here."""
    return "software_device" in variables


def test_unit_runs_and_starts_at_boot(host: Any) -> None:
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled


def test_it_answers(ask: Any, url: str, chat: dict[str, Any]) -> None:
    status, text = ask(f"{url}/v1/chat/completions", body=chat)
    assert status == 200, text
    answer = json.loads(text)
    assert answer["choices"][0]["message"]["content"].strip()
    assert 0 < answer["usage"]["completion_tokens"] <= 8


def test_the_model_has_its_public_name(ask: Any, url: str, variables: dict[str, Any]) -> None:
    status, text = ask(f"{url}/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(text)["data"]] == [variables["llamacpp_model"]]


def test_metrics(ask: Any, url: str, chat: dict[str, Any]) -> None:
    ask(f"{url}/v1/chat/completions", body=chat)
    status, text = ask(f"{url}/metrics")
    assert status == 200
    counted = [line.split()[1] for line in text.splitlines() if line.startswith("llamacpp:tokens_predicted_total ")]
    assert len(counted) == 1
    assert float(counted[0]) > 0


def test_what_slots_hold_is_not_shown(ask: Any, url: str) -> None:
    assert ask(f"{url}/slots")[0] != 200


def test_the_server_has_the_users_arguments(inspect: Any, variables: dict[str, Any]) -> None:
    assert (inspect(UNIT)["Config"]["Cmd"] or []) == variables.get("llamacpp_extra_args", [])


def test_container_is_locked_in(inspect: Any, on_gpu: bool) -> None:
    config = inspect(UNIT)
    limits = config["HostConfig"]
    assert config["Config"]["User"] == "10001:10001"
    assert limits["Privileged"] is False
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["ReadonlyRootfs"] is True
    assert "no-new-privileges:true" in limits["SecurityOpt"]
    assert limits["NetworkMode"] != "host"
    assert limits["RestartPolicy"]["Name"] == "no"
    assert limits["LogConfig"]["Type"] == "none"
    # What a GPU's driver compiles is kept.
    kept = [("/cache", True)] if on_gpu else []
    assert sorted((mount["Destination"], mount["RW"]) for mount in config["Mounts"]) == [*kept, ("/models", False)]


def test_container_can_write_nowhere_but_tmp(host: Any) -> None:
    assert host.run("docker exec %s sh -c 'echo >/tmp/file && rm /tmp/file'", UNIT).rc == 0
    for path in ("/app/file", "/models/file", "/etc/file"):
        tried = host.run("docker exec --user 0 %s sh -c %s", UNIT, f"echo >{path}")
        assert tried.rc != 0, path
        assert "Read-only file system" in tried.stderr


def test_port_is_bound_to_the_nodes_address(host: Any, address: str, inspect: Any) -> None:
    assert inspect(UNIT)["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": address, "HostPort": str(PORT)}]}
    listening = host.check_output("ss --no-header --listening --tcp --numeric sport = :%s", str(PORT))
    assert [line.split()[3] for line in listening.splitlines()] == [f"{address}:{PORT}"]


def test_files_of_the_service(host: Any, variables: dict[str, Any]) -> None:
    folder = "/etc/inference-fleet/services/llamacpp"
    environment = host.file(f"{folder}/service.env")
    assert (environment.user, environment.group, environment.mode) == ("root", "root", 0o600)
    service = json.loads(host.file(f"{folder}/service.json").content_string)
    assert (service["backend"], service["model"], service["port"]) == ("llamacpp", variables["llamacpp_model"], PORT)
    unit = host.file(f"/etc/systemd/system/{UNIT}.service")
    assert (unit.user, unit.group, unit.mode) == ("root", "root", 0o644)
    verified = host.run("systemd-analyze verify %s", f"/etc/systemd/system/{UNIT}.service")
    assert UNIT not in verified.stderr, verified.stderr


def test_the_facts_name_its_place(host: Any, on_gpu: bool) -> None:
    facts = host.ansible("fleet.inference.gpu_facts", check=False, become=True)["ansible_facts"]["gpu"]
    units = ["amd-0"] if on_gpu else []
    assert [(item["name"], item["port"], item["units"]) for item in facts["services"]] == [("llamacpp", PORT, units)]


def test_the_journal_has_the_servers_words(host: Any) -> None:
    journal = host.check_output("journalctl --quiet --no-pager --output cat --unit %s", UNIT)
    assert "print_timing" in journal, journal[-2000:]


def test_all_layers_are_where_the_plan_put_them(host: Any, on_gpu: bool) -> None:
    journal = host.check_output("journalctl --quiet --no-pager --output cat --unit %s", UNIT)
    if on_gpu:
        layers = re.search(r"offloaded (\d+)/(\d+) layers to GPU", journal)
        assert layers, journal[-2000:]
        assert layers[1] == layers[2]
        assert re.search(r"Vulkan0\b.*llvmpipe", journal)
        assert re.search(r"Vulkan0 +KV buffer size", journal)
    else:
        assert "Vulkan" not in journal


def test_killed_it_comes_back(host: Any, answers: Callable[[], bool], inspect: Any, eventually: Any) -> None:
    before = inspect(UNIT)["Id"]
    host.check_output("docker kill %s", UNIT)
    eventually(lambda: host.service(UNIT).is_running and inspect(UNIT)["Id"] != before, "the unit is active again")
    # The unit is active only when the model answers, so there is nothing to wait for now.
    assert answers()
