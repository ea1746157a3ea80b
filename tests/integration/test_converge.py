# SPDX-License-Identifier: Apache-2.0
"""Converging: answers, idempotence, few executions, and only what was edited changes."""

from __future__ import annotations

import collections
import stat
from pathlib import Path

import pytest
from fleet_under_test import ADDRESSES, MODEL, ROOT, Fleet

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(900)]


def test_the_gateway_answers_in_the_models_own_words(fleet: Fleet) -> None:
    answer = fleet.client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        max_tokens=32,
        temperature=0,
    )
    assert "Paris" in (answer.choices[0].message.content or "")


def test_the_gateway_streams(fleet: Fleet) -> None:
    stream = fleet.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Count to three."}], max_tokens=12, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 1


def test_the_gateway_lists_the_model_and_both_nodes_serve_it(fleet: Fleet) -> None:
    assert [model.id for model in fleet.client().models.list()] == [MODEL]
    fragments = fleet.fragments()
    assert sorted(fragments) == ["gpu-01", "gpu-02"]
    assert all(fragment["services"][0]["model"] == MODEL for fragment in fragments.values())


def test_a_second_run_and_a_check_change_nothing(fleet: Fleet) -> None:
    again = fleet.converge()
    assert again.changed == dict.fromkeys(ADDRESSES, 0), again.output[-4000:]
    assert "[WARNING]" not in again.output
    check = fleet.converge("--check", "--diff")
    assert check.changed == dict.fromkeys(ADDRESSES, 0), check.output[-4000:]


def test_two_services_cost_at_most_six_module_executions(fleet: Fleet, tmp_path: Path) -> None:
    services = [
        {"name": "first", "backend": "llamacpp", "model": MODEL, "context_length": 1024, "parallel": 1},
        {"name": "second", "backend": "llamacpp", "model": MODEL, "context_length": 1024, "parallel": 1},
    ]
    fleet.set_host_vars("gpu-01", {"inference_services": services})
    try:
        fleet.converge("-l", "gpu-01")
        assert [service["port"] for service in fleet.fragments()["gpu-01"]["services"]] == [8005, 8006]
        counts = tmp_path / "executions"
        run = fleet.play(
            "-l",
            "gpu-01",
            env={
                "EXECUTIONS_FILE": str(counts),
                "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "integration" / "callback_plugins"),
                "ANSIBLE_CALLBACKS_ENABLED": "executions",
            },
        )
        assert run.rc == 0, run.output[-4000:]
        assert run.changed == {"gpu-01": 0}
        modules = collections.Counter(line.split("\t")[1] for line in counts.read_text().splitlines())
        print(dict(modules))
        # Both services are looked at, so the counter counts.
        assert modules["fleet.inference.container_service"] == 2
        assert modules.total() <= 6, modules
    finally:
        fleet.set_host_vars("gpu-01", None)
        fleet.converge("-l", "gpu-01")


def test_one_hosts_variables_change_that_hosts_service_only(fleet: Fleet) -> None:
    before = {node: fleet.container_started(node) for node in ("gpu-01", "gpu-02")}
    fleet.set_host_vars("gpu-02", {"llamacpp_parallel": 2, "llamacpp_ctx_size": 2048})
    try:
        run = fleet.converge()
        assert run.changed["gpu-01"] == 0, run.output[-4000:]
        assert fleet.container_started("gpu-01") == before["gpu-01"]
        assert fleet.container_started("gpu-02") != before["gpu-02"]
        (service,) = fleet.fragments()["gpu-02"]["services"]
        assert (service["parallel"], service["context_length"]) == (2, 2048)
        assert fleet.ask()
    finally:
        fleet.set_host_vars("gpu-02", None)
        fleet.converge()


def test_a_groups_variable_reaches_the_gateway(fleet: Fleet) -> None:
    extra = ["-e", '{"llamacpp_port": 8015}']
    try:
        fleet.converge("-l", "gpu-nodes", *extra)
        assert {f["services"][0]["port"] for f in fleet.fragments().values()} == {8015}
        assert ":8015 " in fleet.shell("gateway-01", "cat /etc/haproxy/haproxy.cfg")
        assert fleet.ask()
    finally:
        fleet.converge("-l", "gpu-nodes")
    assert {f["services"][0]["port"] for f in fleet.fragments().values()} == {8005}


def test_a_run_limited_to_one_node_keeps_the_other(fleet: Fleet) -> None:
    run = fleet.converge("-l", "gpu-02")
    assert set(run.recap) == {"gpu-02"}
    assert sorted(fleet.fragments()) == ["gpu-01", "gpu-02"]


def test_a_run_limited_to_the_nodes_sets_up_a_gateway_that_has_never_been(fleet: Fleet) -> None:
    fleet.recreate("gateway-01")
    run = fleet.converge("-l", "gpu-nodes")
    assert set(run.recap) == {"gpu-01", "gpu-02"}
    assert sorted(fleet.fragments()) == ["gpu-01", "gpu-02"]
    assert fleet.ask()
    assert fleet.converge().changed == dict.fromkeys(ADDRESSES, 0)


def test_the_key_file_is_for_its_owner_only(fleet: Fleet) -> None:
    assert stat.S_IMODE(fleet.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(fleet.key_file.parent.stat().st_mode) == 0o700
