# SPDX-License-Identifier: Apache-2.0
"""The playbooks of the daily verbs, with this machine for every node and stand-ins for systemd, journal and docker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from verbs_fleet import Fleet

NODES = {
    "gpu-01": {"chat": "qwen3-8b", "code": "coder"},
    "gpu-02": {"chat": "qwen3-8b"},
    "gpu-03": {},
}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, NODES)


def table(text: str) -> list[list[str]]:
    """Return the cells of the table that a run prints at its end, without the head."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("node ") and line.endswith("state"))
    rows = []
    for line in lines[start + 1 :]:
        if not line:
            break
        rows.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return rows


@pytest.mark.parametrize(
    ("verb", "arguments", "done"),
    [
        ("restart", [], "would be restarted"),
        ("remove", ["-e", "everything=true", "-e", "data=true", "-e", "force=true"], "would be removed"),
    ],
)
def test_a_check_tells_what_would_be_done_and_touches_nothing(
    fleet: Fleet, verb: str, arguments: list[str], done: str
) -> None:
    (fleet.folder / "gpu-01" / "models" / "gguf").mkdir(parents=True)
    (fleet.folder / "gpu-01" / "models" / "gguf" / "a.gguf").write_text("weights")
    before = fleet.snapshot()
    ran = fleet.play(verb, "--check", *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert table(ran.stdout) == [
        ["gpu-01", "chat", "llamacpp", "qwen3-8b", done, "serving"],
        ["gpu-01", "code", "llamacpp", "coder", done, "serving"],
        ["gpu-02", "chat", "llamacpp", "qwen3-8b", done, "serving"],
    ]
    assert fleet.snapshot() == before


def test_stop_takes_a_service_out_of_the_pools_first_and_start_brings_it_back(fleet: Fleet) -> None:
    stopped = fleet.play("stop", "-e", "service=chat", "-l", "gpu-01")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert table(stopped.stdout) == [["gpu-01", "chat", "llamacpp", "qwen3-8b", "stopped", "stopped"]]
    assert fleet.calls == ["gpu-01 stop inference-chat.service; away: gpu-01.json "]
    assert fleet.away() == {"gpu-01/chat"}

    again = fleet.play("stop", "-e", "service=chat", "-l", "gpu-01")
    assert "changed=0" in again.stdout and "changed=1" not in again.stdout
    assert table(again.stdout)[0][4:] == ["nothing to do", "stopped"]

    checked = fleet.play("start", "-l", "gpu-01", "--check")
    assert [row[4:] for row in table(checked.stdout)] == [["would be started", "stopped"], ["nothing to do", "serving"]]
    assert fleet.away() == {"gpu-01/chat"} and len(fleet.calls) == 1

    started = fleet.play("start", "-l", "gpu-01")
    assert [row[4:] for row in table(started.stdout)] == [["started", "serving"], ["nothing to do", "serving"]]
    # It gets requests when it serves, and not before.
    assert fleet.calls[1:] == ["gpu-01 start inference-chat.service; away: gpu-01.json "]
    assert fleet.away() == set()


def test_a_restart_leaves_each_pool_a_server(fleet: Fleet) -> None:
    ran = fleet.play("restart", "-e", "format=json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert fleet.calls == [
        "gpu-01 restart inference-chat.service; away: gpu-01.json ",
        "gpu-01 restart inference-code.service; away: gpu-01.json ",
        "gpu-02 restart inference-chat.service; away: gpu-02.json ",
    ]
    assert fleet.away() == set()
    document = json.loads(ran.stdout)
    assert (document["verb"], document["check"], document["without_answer"]) == ("restart", False, [])
    assert [(row["node"], row["done"], row["state"]) for row in document["services"]] == [
        ("gpu-01", "restarted", "serving"),
        ("gpu-01", "restarted", "serving"),
        ("gpu-02", "restarted", "serving"),
    ]


def test_after_a_wave_that_failed_nothing_more_is_touched(fleet: Fleet) -> None:
    (fleet.folder / "gpu-01" / "broken" / "inference-chat.service").touch()
    ran = fleet.play("restart")
    assert ran.returncode == 2
    assert [row[4:] for row in table(ran.stdout)] == [
        ["failed", "failed"],
        ["restarted", "serving"],
        ["not reached", "serving"],
    ]
    assert "gpu-01: chat: restart failed; the reason is above" in ran.stdout
    # What serves again gets requests; what does not serve gets none.
    assert fleet.away() == {"gpu-01/chat"}
    assert not any(line.startswith("gpu-02") for line in fleet.calls)


def test_remove_unpublishes_first_and_keeps_models(fleet: Fleet) -> None:
    model = fleet.folder / "gpu-01" / "models" / "gguf" / "a" / "a.gguf"
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    ran = fleet.play("remove", "-e", "service=code", "-e", "force=true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert table(ran.stdout) == [["gpu-01", "code", "llamacpp", "coder", "removed", "removed"]]
    assert not (fleet.folder / "gpu-01" / "etc" / "services" / "code").exists()
    fragment = json.loads((fleet.folder / "registry" / "gpu-01.json").read_text())
    assert [entry["name"] for entry in fragment["services"]] == ["chat"]
    assert model.exists()


def test_the_data_of_one_service_go_and_those_of_the_others_stay(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, {"gpu-01": {"chat": "qwen3-8b", "small": "smollm2-135m-instruct"}})
    files = {
        name: fleet.folder / "gpu-01" / path
        for name, path in {
            "small": "models/gguf/a/SmolLM2-135M-Instruct.Q4_1.gguf",
            "chat": "models/gguf/b/Qwen3-8B-Q4_K_M.gguf",
            "cache": "var/caches/llamacpp/x/kernel",
        }.items()
    }
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.write_text("data")
    ran = fleet.play("remove", "-e", "service=small", "-e", "data=true", "-e", "force=true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [name for name, file in files.items() if file.exists()] == ["chat", "cache"]


def test_everything_goes_with_its_data_when_asked(fleet: Fleet) -> None:
    for path in ("models/gguf/a/a.gguf", "var/caches/llamacpp/x/kernel", "models/mine.txt"):
        file = fleet.folder / "gpu-01" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("data")
    ran = fleet.play("remove", "-l", "gpu-01", "-e", "everything=true", "-e", "data=true", "-e", "force=true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sorted(path.name for path in (fleet.folder / "registry").glob("*.json")) == ["gpu-02.json", "gpu-03.json"]
    assert not (fleet.folder / "gpu-01" / "models" / "gguf").exists()
    assert not (fleet.folder / "gpu-01" / "var" / "caches" / "llamacpp").exists()
    # Not the fleet's.
    assert (fleet.folder / "gpu-01" / "models" / "mine.txt").exists()
    assert list((fleet.folder / "gpu-01" / "etc" / "services").iterdir()) == []


def test_data_of_services_that_are_gone_already_go_when_everything_is_asked_for(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, {"gpu-01": {}})
    for path in ("models/gguf/a/a.gguf", "var/caches/vllm/x/kernel"):
        file = fleet.folder / "gpu-01" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("data")
    ran = fleet.play("remove", "-e", "everything=true", "-e", "data=true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no service is installed on gpu-01" in ran.stdout
    assert not (fleet.folder / "gpu-01" / "models" / "gguf").exists()
    assert not (fleet.folder / "gpu-01" / "var" / "caches").exists()


@pytest.mark.parametrize(
    ("verb", "arguments", "sentence"),
    [
        (
            "logs",
            ["-e", "service=chta"],
            "3 nodes: service is 'chta', which is not installed; did you mean chat? installed: chat, code",
        ),
        (
            "stop",
            ["-e", "service=chta"],
            "3 nodes: service is 'chta', which is not installed; did you mean chat? installed: chat, code",
        ),
        ("remove", [], "nothing is named; give -e service=NAME, or -e everything=true for all services of the nodes"),
        (
            "stop",
            ["-e", "service=chat"],
            "stop takes away the last server of qwen3-8b (chat on gpu-01, chat on gpu-02), and requests for it fail "
            "until it serves again; -e force=true does it all the same",
        ),
        ("logs", ["-e", "lines=many", "-e", "service=chat"], 'lines is "many"; give a whole number from 1 on'),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(
    fleet: Fleet, verb: str, arguments: list[str], sentence: str
) -> None:
    before = fleet.snapshot()
    ran = fleet.play(verb, *arguments)
    assert ran.returncode == 2
    assert f"FAILED! => {sentence}" in ran.stdout
    assert fleet.snapshot() == before


def test_a_gateway_that_cannot_be_told_stops_a_stop(tmp_path: Path) -> None:
    # Nothing listens on port 1, so SSH is refused at once.
    down = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    fleet = Fleet(tmp_path, {"gpu-01": {"chat": "qwen3-8b"}}, gateway=down)
    ran = fleet.play("stop")
    assert ran.returncode == 2
    assert "gpu-01: stop touches nothing, because a gateway may still send requests: gateway-01: can't be reached" in (
        ran.stdout
    )
    assert fleet.calls == []
    assert table(ran.stdout)[0][4:] == ["not reached", "serving"]

    # Also of a restart, which asks the gateways first what else serves the same.
    assert "gpu-01: restart touches nothing, because" in fleet.play("restart").stdout

    forced = fleet.play("stop", "-e", "force=true")
    # The service is stopped, and the gateway that does not know stays an error.
    assert table(forced.stdout)[0][4:] == ["stopped", "stopped"], forced.stdout
    assert forced.returncode == 2 and "so nothing was published to it" in " ".join(forced.stdout.split())


def test_logs_show_each_service_s_last_lines(fleet: Fleet) -> None:
    ran = fleet.play("logs", "-l", "gpu-01", "-e", "lines=2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "    code (serving)\n    2026-11-23T17:00:00+0000 inference-code.service: line 499\n" in ran.stdout
    assert ran.stdout.count(": line ") == 4

    ran = fleet.play("logs", "-e", "service=chat", "-e", "lines=3", "-e", "format=json")
    nodes = json.loads(ran.stdout)["nodes"]
    assert {node: [(item["name"], len(item["lines"])) for item in items] for node, items in nodes.items()} == {
        "gpu-01": [("chat", 3)],
        "gpu-02": [("chat", 3)],
        "gpu-03": [],
    }
