# SPDX-License-Identifier: Apache-2.0
"""The daily verbs on a fleet that serves: what they say, and that clients notice nothing of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fleet_under_test import MODEL, SET, Fleet, Run
from local_nodes import host

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

NODES = ("gpu-01", "gpu-02")
#: What a verb could have changed on a node, as one text.
STATE = (
    "docker ps --all --no-trunc --format '{{.ID}} {{.Names}} {{.Status}}' | sed 's/ Up .*//'; "
    "systemctl show --property=ActiveState,InvocationID,UnitFileState inference-llamacpp inference-fleet.target; "
    "find /etc/inference-fleet /etc/systemd/system /var/lib/inference-fleet -type f ! -name '*.lock' "
    "-exec sha256sum {} + | sort"
)
GATEWAY_STATE = "sha256sum /etc/haproxy/haproxy.cfg /var/lib/inference-fleet/registry/* | sort"
MODEL_FILES = "find /var/lib/inference-fleet/models -name '*.gguf' | wc -l"


def verb(fleet: Fleet, name: str, *arguments: str, rc: int = 0) -> Run:
    """Run a verb's playbook and insist on its exit code."""
    run = fleet.play(*arguments, playbook=f"playbooks/{name}.yml")
    assert run.rc == rc, run.output[-4000:]
    assert "[WARNING]" not in run.output and "Traceback" not in run.output
    return run


def document(fleet: Fleet, name: str, *arguments: str) -> Any:
    """Run a verb with -e format=json and return what it printed on standard output."""
    run = verb(fleet, name, "-e", "format=json", *arguments)
    return json.loads(run.stdout)


def table(run: Run) -> list[list[str]]:
    """The rows of the table at a run's end, without its head."""
    lines = [line.strip() for line in run.output.splitlines()]
    start = next(number for number, line in enumerate(lines) if re.match(r"node +service +backend ", line))
    rows = []
    for line in lines[start + 1 :]:
        if not line:
            break
        rows.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return rows


def row(node: str, done: str, state: str) -> list[str]:
    return [node, "llamacpp", "llamacpp", MODEL, done, state]


def away(fleet: Fleet) -> dict[str, list[bool]]:
    """Whether the gateway keeps requests from each node's services."""
    return {node: [entry["stopped"] for entry in fragment["services"]] for node, fragment in fleet.fragments().items()}


@pytest.mark.parametrize(
    ("name", "arguments", "done"),
    [
        ("stop", ["-l", "gpu-01"], "would be stopped"),
        ("remove", ["-l", "gpu-01", "-e", "everything=true", "-e", "data=true"], "would be removed"),
    ],
)
def test_a_check_tells_and_changes_nothing(fleet: Fleet, name: str, arguments: list[str], done: str) -> None:
    before = fleet.shell("gpu-01", STATE), fleet.shell("gateway-01", GATEWAY_STATE)
    run = verb(fleet, name, "--check", *arguments)
    assert table(run) == [row("gpu-01", done, "serving")]
    assert (fleet.shell("gpu-01", STATE), fleet.shell("gateway-01", GATEWAY_STATE)) == before


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "restart",
            ["service=lamacpp"],
            "2 nodes: service is 'lamacpp', which is not installed; did you mean llamacpp?",
        ),
        ("logs", ["service=lamacpp"], "2 nodes: service is 'lamacpp', which is not installed; did you mean llamacpp?"),
        (
            "switch",
            ["service=lamacpp", "backend=vllm"],
            "service is 'lamacpp', which the node does not serve; did you mean",
        ),
        ("stop", [], f"stop takes away the last server of {MODEL} (llamacpp on gpu-01, llamacpp on gpu-02)"),
        ("models", [f"remove={MODEL}"], f"gpu-01: the model {MODEL} is in use, because the plan names it"),
    ],
)
def test_what_cannot_be_meant_gets_one_sentence(fleet: Fleet, name: str, arguments: list[str], sentence: str) -> None:
    before = [fleet.container_started(node) for node in NODES]
    run = verb(fleet, name, *(part for argument in arguments for part in ("-e", argument)), rc=2)
    assert sentence in " ".join(run.output.split()), run.output[-2000:]
    assert all(count == 0 for count in run.changed.values()), run.output[-2000:]
    assert [fleet.container_started(node) for node in NODES] == before


def test_logs_are_the_last_lines_of_each_service(fleet: Fleet) -> None:
    told = document(fleet, "logs", "-e", "lines=3", "-e", "service=llamacpp")
    assert {node: [len(item["lines"]) for item in items] for node, items in told["nodes"].items()} == {
        "gpu-01": [3],
        "gpu-02": [3],
    }
    run = verb(fleet, "logs", "-l", "gpu-02", "-e", "lines=2")
    assert "llamacpp (serving)\n" in run.output
    assert len(re.findall(r"^ +20\d\d-\S+ \S+: ", run.output, re.MULTILINE)) == 2


def test_models_lists_what_each_store_has(fleet: Fleet) -> None:
    told = document(fleet, "models")
    assert [(item["node"], item["models"], item["use"]) for item in told["models"]] == [
        ("gpu-01", [MODEL], "planned"),
        ("gpu-02", [MODEL], "planned"),
    ]


def test_a_node_is_stopped_and_started_and_no_request_is_lost(fleet: Fleet) -> None:
    runs: list[Run] = []
    load = fleet.ask_while(lambda: runs.append(verb(fleet, "stop", "-l", "gpu-01")), streaming=1, more=10, pause=0.3)
    assert load.failures == []
    assert "their requests are cut" not in runs[0].output
    assert table(runs[0]) == [row("gpu-01", "stopped", "stopped")]
    try:
        assert away(fleet) == {"gpu-01": [True], "gpu-02": [False]}
        # What is left is not taken away by mistake.
        refused = verb(fleet, "stop", "-l", "gpu-02", rc=2)
        assert f"stop takes away the last server of {MODEL} (llamacpp on gpu-02)" in refused.output
        # Neither the target nor a restart of the node brings it back.
        fleet.shell("gpu-01", "systemctl start inference-fleet.target")
        host.podman("restart", "--time", "20", f"inference-fleet-{SET}-gpu-01")
        fleet.shell(
            "gpu-01", "timeout 60 sh -c 'until systemctl is-active --quiet multi-user.target; do sleep 0.5; done'"
        )
        assert fleet.shell("gpu-01", "systemctl is-active inference-llamacpp", check=False).strip() == "inactive"
        assert fleet.shell("gpu-01", "docker ps --all --quiet") == ""
        assert fleet.ask()
    finally:
        load = fleet.ask_while(
            lambda: runs.append(verb(fleet, "start", "-l", "gpu-01")), streaming=1, more=10, pause=0.3
        )
    assert load.failures == []
    assert table(runs[1]) == [row("gpu-01", "started", "serving")]
    assert away(fleet) == {"gpu-01": [False], "gpu-02": [False]}


def test_services_restart_in_turn_and_no_request_is_lost(fleet: Fleet) -> None:
    before = {node: fleet.container_started(node) for node in NODES}
    told: list[Any] = []
    load = fleet.ask_while(
        lambda: told.append(document(fleet, "restart", "-e", "service=llamacpp")), streaming=1, more=10, pause=0.3
    )
    assert load.failures == []
    assert [(item["node"], item["done"], item["state"]) for item in told[0]["services"]] == [
        ("gpu-01", "restarted", "serving"),
        ("gpu-02", "restarted", "serving"),
    ]
    assert all(fleet.container_started(node) != before[node] for node in NODES)
    assert away(fleet) == {"gpu-01": [False], "gpu-02": [False]}


def test_a_removed_service_is_gone_and_its_data_go_when_asked(fleet: Fleet) -> None:
    leftovers = (
        "ls -d /etc/inference-fleet/services/* /etc/systemd/system/inference-* /etc/systemd/system/*/inference-* "
        "2>/dev/null; docker ps --all --quiet; systemctl list-units --all --no-legend 'inference-*'"
    )
    try:
        runs: list[Run] = []
        load = fleet.ask_while(
            lambda: runs.append(verb(fleet, "remove", "-l", "gpu-02", "-e", "service=llamacpp")), more=10, pause=0.3
        )
        assert load.failures == []
        assert table(runs[0]) == [row("gpu-02", "removed", "removed")]
        assert fleet.shell("gpu-02", leftovers, check=False) == ""
        assert fleet.fragments()["gpu-02"]["services"] == []
        assert "10.214.77.22" not in fleet.shell("gateway-01", "cat /etc/haproxy/haproxy.cfg")
        assert fleet.shell("gpu-02", MODEL_FILES).strip() == "1"

        verb(fleet, "remove", "-l", "gpu-02", "-e", "everything=true", "-e", "data=true")
        assert sorted(fleet.fragments()) == ["gpu-01"]
        assert fleet.shell("gpu-02", MODEL_FILES).strip() == "0"

        pulled = verb(fleet, "models", "-l", "gpu-02", "-e", "pull=all")
        assert re.search(rf"gpu-02 +{MODEL} .* pulled$", pulled.output, re.MULTILINE), pulled.output[-2000:]
        assert fleet.shell("gpu-02", MODEL_FILES).strip() == "1"
    finally:
        fleet.converge("-l", "gpu-02")
    assert away(fleet) == {"gpu-01": [False], "gpu-02": [False]}
    assert fleet.container_started("gpu-02")
