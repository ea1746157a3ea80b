# SPDX-License-Identifier: Apache-2.0
"""What systemd does with the services by itself: restarts, the end of trying, stops, boots, and the target."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import time
from pathlib import Path

import openai
import pytest
from fleet_under_test import ADDRESSES, MODEL, ROOT, SET, Fleet
from local_nodes import host

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

UNIT = "inference-llamacpp.service"
TARGET = "inference-fleet.target"


def shown(fleet: Fleet, node: str, *properties: str, unit: str = UNIT) -> dict[str, str]:
    """Properties of a unit."""
    text = fleet.shell(node, f"systemctl show --property={','.join(properties)} {unit}")
    return dict(line.split("=", 1) for line in text.splitlines())


def wait_for_state(fleet: Fleet, node: str, state: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    found = ""
    while time.monotonic() < deadline:
        found = shown(fleet, node, "ActiveState")["ActiveState"]
        if found == state:
            return
        time.sleep(0.5)
    raise AssertionError(f"{node}: {UNIT} is {found!r} and not {state!r} after {seconds} s")


def pauses(fleet: Fleet, node: str, since: str) -> list[float]:
    """Seconds between the end of each attempt and the next one, by systemd's own lines in the journal."""
    text = fleet.shell(node, f"journalctl --unit={UNIT} --since='{since}' --output=json --no-pager")
    found = []
    ended = 0.0
    for record in map(json.loads, text.splitlines()):
        moment = int(record["__REALTIME_TIMESTAMP"]) / 1e6
        message = str(record["MESSAGE"])
        if "Failed with result" in message:
            ended = moment
        elif "Scheduled restart job" in message:
            found.append(moment - ended)
    return found


def now(fleet: Fleet, node: str) -> str:
    return fleet.shell(node, "date '+%Y-%m-%d %H:%M:%S'").strip()


def test_a_service_that_crashes_again_and_again_comes_back_a_little_later_each_time(fleet: Fleet) -> None:
    fleet.shell("gpu-01", f"systemctl restart {UNIT}")
    since = now(fleet, "gpu-01")
    for _ in range(3):
        fleet.shell("gpu-01", "docker kill inference-llamacpp")
        wait_for_state(fleet, "gpu-01", "activating", 10)
        fleet.wait_active("gpu-01")
    first, second, third = pauses(fleet, "gpu-01", since)
    assert 1.5 < first < second < third < 16
    assert shown(fleet, "gpu-01", "NRestarts") == {"NRestarts": "3"}
    assert fleet.ask()


def test_a_service_that_cannot_start_ends_in_failed_with_its_last_lines(fleet: Fleet) -> None:
    settings = "/etc/inference-fleet/services/llamacpp/service.env"
    fleet.shell("gpu-01", f"cp -p {settings} /root/ && echo LLAMA_ARG_ROPE_SCALING_TYPE=sideways >>{settings}")
    try:
        run = fleet.play("-l", "gpu-01", playbook="playbooks/restart.yml")
        assert run.rc == 2
        # The verb says what the engine said, the gateway sends requests to the other node.
        assert "the container ended before it was ready" in " ".join(run.output.split())
        assert 'error while handling environment variable "LLAMA_ARG_ROPE_SCALING_TYPE"' in run.output
        assert "gpu-01: llamacpp: restart failed; the reason is above" in " ".join(run.output.split())
        assert [entry["stopped"] for entry in fleet.fragments()["gpu-01"]["services"]] == [True]
        assert fleet.ask()

        fleet.shell("gpu-01", f"systemctl stop {UNIT}; systemctl reset-failed {UNIT}", check=False)
        since = now(fleet, "gpu-01")
        fleet.shell("gpu-01", f"systemctl start {UNIT}", check=False)
        wait_for_state(fleet, "gpu-01", "failed", 90)
        found = pauses(fleet, "gpu-01", since)
        assert len(found) == 5 and found == sorted(found), found
        assert 'environment variable "LLAMA_ARG_ROPE_SCALING_TYPE"' in fleet.shell(
            "gpu-01", f"journalctl --unit={UNIT} --lines=30 --no-pager"
        )
        status = fleet.shell("gpu-01", f"systemctl status --no-pager --lines=20 {UNIT}", check=False)
        assert "Start request repeated too quickly" in status
    finally:
        fleet.shell("gpu-01", f"mv /root/service.env {settings}")
        run = fleet.play("-l", "gpu-01", playbook="playbooks/start.yml")
    assert run.rc == 0, run.output[-4000:]
    assert [entry["stopped"] for entry in fleet.fragments()["gpu-01"]["services"]] == [False]


def test_a_stop_of_the_target_lets_a_running_request_finish(fleet: Fleet) -> None:
    engine = openai.OpenAI(base_url=f"http://{ADDRESSES['gpu-01']}:8005/v1", api_key="none", max_retries=0)
    stream = engine.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count."}],
        max_tokens=150,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = [next(stream)]
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(fleet.shell, "gpu-01", f"systemctl stop {TARGET}")
            pieces += stream
            stopping.result()
        # All of its tokens came.
        assert pieces[-1].choices[0].finish_reason == "length"
        # systemctl waits for the target alone, which is down before its services are.
        wait_for_state(fleet, "gpu-01", "inactive", 30)
        assert shown(fleet, "gpu-01", "Result") == {"Result": "success"}
        assert fleet.ask()
    finally:
        fleet.shell("gpu-01", f"systemctl start {TARGET}")
    fleet.wait_active("gpu-01")


def test_after_a_boot_everything_is_back_in_order(fleet: Fleet) -> None:
    host.podman("restart", "--time", "20", f"inference-fleet-{SET}-gpu-02")
    fleet.wait_active("gpu-02", seconds=90)
    began = {
        unit: int(shown(fleet, "gpu-02", "ActiveEnterTimestampMonotonic", unit=unit)["ActiveEnterTimestampMonotonic"])
        for unit in ("docker.service", UNIT, TARGET)
    }
    # The target does not wait for its services, and so does not hold up the boot.
    assert began["docker.service"] < began[UNIT]
    assert fleet.shell("gpu-02", f"systemctl is-active {TARGET}").strip() == "active"
    assert UNIT in shown(fleet, "gpu-02", "Wants", unit=TARGET)["Wants"]
    # No GPU, so nothing waits for one.
    assert "gpu-ready.service" not in shown(fleet, "gpu-02", "Requires")["Requires"]


def test_a_service_that_is_as_it_should_be_costs_one_module_execution(fleet: Fleet, tmp_path: Path) -> None:
    counts = tmp_path / "executions"
    env = {
        "EXECUTIONS_FILE": str(counts),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "integration" / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "executions",
    }
    run = fleet.play("-l", "gpu-01", env=env)
    assert run.rc == 0, run.output[-4000:]
    assert run.changed == {"gpu-01": 0}
    modules = collections.Counter(line.split("\t")[1] for line in counts.read_text().splitlines())
    assert modules["fleet.inference.container_service"] == 1
    assert modules.total() <= 5, modules
