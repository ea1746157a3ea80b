# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import re

from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pool_name, pools
from gateway_samples import TWO_NODES, fragment, service


def test_two_nodes_of_one_model_are_one_pool() -> None:
    (pool,) = pools(TWO_NODES)
    assert pool["name"] == "smollm2-135m-instruct--llamacpp"
    assert (pool["context_length"], pool["parallel"], pool["health_path"]) == (2048, 8, "/health")
    assert [(s["name"], s["address"], s["drained"]) for s in pool["servers"]] == [
        ("gpu-01-llamacpp", "10.0.0.11", False),
        ("gpu-02-llamacpp", "10.0.0.12", True),
    ]


def test_a_node_that_restarts_gets_no_new_requests() -> None:
    (pool,) = pools([fragment("gpu-01", "10.0.0.11", restarting=True), fragment("gpu-02", "10.0.0.12")])
    assert [server["drained"] for server in pool["servers"]] == [True, False]


def test_a_stopped_service_gets_no_requests_and_its_neighbour_does() -> None:
    given = [
        fragment("gpu-01", "10.0.0.11", service("a", stopped=True), service("b", port=8006)),
        fragment("gpu-02", "10.0.0.12", service("a")),
    ]
    [pool] = pools(given)
    assert {server["name"]: server["drained"] for server in pool["servers"]} == {
        "gpu-01-a": True,
        "gpu-01-b": False,
        "gpu-02-a": False,
    }


def test_no_fragment_is_no_pool() -> None:
    assert pools([]) == []


def test_each_backend_of_a_model_is_its_own_pool_and_the_smallest_context_counts() -> None:
    found = pools(
        [
            fragment("a", "10.0.0.1", service(), service("vllm", backend="vllm", port=8003, context_length=None)),
            fragment("b", "10.0.0.2", service(context_length=1024, parallel=None)),
        ]
    )
    assert [pool["backend"] for pool in found] == ["llamacpp", "vllm"]
    assert [pool["context_length"] for pool in found] == [1024, None]
    assert found[0]["parallel"] == 4


def test_the_order_of_the_fragments_does_not_matter() -> None:
    fragments = [fragment(name, f"10.0.0.{n}", service(), service("x", model="m")) for n, name in enumerate("abc", 1)]
    assert len({repr(pools(order)) for order in itertools.permutations(fragments)}) == 1


def test_a_name_fits_a_url_and_haproxy() -> None:
    assert pool_name("Qwen/Qwen3:0.6B", "ollama") == "qwen-qwen3-0.6b--ollama"


def test_names_that_would_collide_stay_apart() -> None:
    found = pools(
        [
            fragment("a", "10.0.0.1", service("b-c"), service("d", model="x/y"), service("e", model="x-y")),
            fragment("a-b", "10.0.0.2", service("c")),
        ]
    )
    names = [pool["name"] for pool in found]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)
    servers = [server["name"] for server in found[0]["servers"]]
    assert len(set(servers)) == len(servers) == 2
