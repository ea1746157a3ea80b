# SPDX-License-Identifier: Apache-2.0
"""Engines and nodes that die: systemd brings them back, and the gateway answers meanwhile."""

from __future__ import annotations

import concurrent.futures

import pytest
from fleet_under_test import MODEL, SET, Fleet, Run
from local_nodes import host

NODES = ("gpu-01", "gpu-02")

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]


def test_a_killed_engine_comes_back_and_no_request_is_lost(fleet: Fleet) -> None:
    before = fleet.container_started("gpu-01")
    load = fleet.ask_while(lambda: fleet.shell("gpu-01", "docker kill inference-llamacpp"))
    assert load.failures == []
    fleet.wait_active("gpu-01")
    assert fleet.container_started("gpu-01") != before


def test_a_node_that_goes_away_is_replaced_by_the_other(fleet: Fleet) -> None:
    container = f"inference-fleet-{SET}-gpu-02"
    try:
        load = fleet.ask_while(lambda: host.podman("kill", container))
        assert load.failures == []
    finally:
        host.podman("start", container)
    fleet.wait_active("gpu-02")
    assert fleet.ask()


def test_a_restarted_node_serves_again_by_itself(fleet: Fleet) -> None:
    """After a boot nothing but the node's own units brings its service back."""
    container = f"inference-fleet-{SET}-gpu-01"
    host.podman("restart", "--time", "20", container)
    fleet.wait_active("gpu-01", seconds=90)
    run = fleet.converge()
    assert run.changed["gpu-01"] == 0, run.output[-3000:]


def test_nodes_restart_one_after_the_other_and_no_request_is_lost(fleet: Fleet) -> None:
    """The role that restarts nodes for a driver: each is drained, restarted, and back before the next one goes."""
    before = {node: fleet.container_started(node) for node in NODES}
    runs: list[Run] = []
    # A long answer that has begun is streamed to its end, whichever node it comes from.
    stream = fleet.client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to three hundred, in words."}],
        max_tokens=400,
        stream=True,
    )
    pieces = [next(stream)]
    with fleet.reboots(NODES), concurrent.futures.ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(lambda: pieces.extend(stream))
        load = fleet.ask_while(lambda: runs.append(fleet.play(playbook="tests/integration/restart.yml")))
        streaming.result()
    (run,) = runs
    assert run.rc == 0, run.output[-6000:]
    assert load.failures == []
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    assert "their requests are cut" not in run.output
    assert run.output.index("gpu-01: restarts, because") < run.output.index("gpu-02: restarts, because")
    for node in NODES:
        assert fleet.container_started(node) != before[node]
    assert [fragment["restarting"] for fragment in fleet.fragments().values()] == [False, False]
    assert "weight 0" not in fleet.shell("gateway-01", "cat /etc/haproxy/haproxy.cfg")


def test_a_new_setting_that_does_not_work_is_taken_back(fleet: Fleet) -> None:
    """llama-server refuses an unknown value; the service that ran before answers again."""
    run = fleet.play("-l", "gpu-01", "-e", '{"llamacpp_env": {"LLAMA_ARG_NUMA": "nonsense"}}')
    assert run.rc != 0
    assert "gpu-01" in run.output
    assert "again" in run.output
    fleet.wait_active("gpu-01", seconds=5)
    assert "nonsense" not in fleet.shell("gpu-01", "cat /etc/inference-fleet/services/llamacpp/service.env")
    assert fleet.converge("-l", "gpu-01").changed == {"gpu-01": 0}
