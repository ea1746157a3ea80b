# SPDX-License-Identifier: Apache-2.0
"""Which services a verb is about, in which waves, and what its table says."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils import verbs
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import validate_fragment


def item(name: str, state: str = "serving", model: str = "qwen3-8b") -> dict[str, Any]:
    return {"name": name, "backend": "llamacpp", "models": [model], "state": state}


SEEN = {"gpu-02": [item("chat")], "gpu-01": [item("chat"), item("code", "stopped"), item("old", "failed")]}


def registry(*servers: tuple[str, str, str, str], **flags: dict[str, bool]) -> list[dict[str, Any]]:
    """Return fragments for (node, service, model, backend); flags are for a node's whole fragment."""
    nodes: dict[str, list[dict[str, Any]]] = {}
    for node, name, model, backend in servers:
        nodes.setdefault(node, []).append({"name": name, "model": model, "backend": backend, "port": 8000 + len(name)})
    return [
        validate_fragment(
            {"schema_version": 1, "node": node, "address": "a", "services": services, **flags.get(node, {})}
        )
        for node, services in nodes.items()
    ]


def wave_names(wanted: list[str], fragments: list[dict[str, Any]]) -> list[list[str]]:
    targets = [dict(zip(("node", "service"), name.split("/"), strict=True)) for name in wanted]
    return [[f"{one['node']}/{one['service']}" for one in wave] for wave in verbs.waves(targets, fragments)]


def names(targets: list[dict[str, str]]) -> list[str]:
    return [f"{one['node']}/{one['service']}" for one in targets]


def test_all_services_or_those_of_a_name() -> None:
    assert names(verbs.targets(SEEN, "stop")) == ["gpu-01/chat", "gpu-01/code", "gpu-01/old", "gpu-02/chat"]
    assert names(verbs.targets(SEEN, "stop", "chat")) == ["gpu-01/chat", "gpu-02/chat"]


def test_what_somebody_stopped_is_restarted_only_by_its_name() -> None:
    assert names(verbs.targets(SEEN, "restart")) == ["gpu-01/chat", "gpu-01/old", "gpu-02/chat"]
    assert names(verbs.targets(SEEN, "restart", "code")) == ["gpu-01/code"]


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (SEEN, "2 nodes: service is 'chta', which is not installed; did you mean chat? installed: chat, code, old"),
        ({"gpu-09": []}, "gpu-09: service is 'chta', which is not installed; installed: none"),
    ],
)
def test_an_unknown_name_is_one_sentence(seen: dict[str, list[dict[str, Any]]], sentence: str) -> None:
    assert verbs.name_problem(seen, "chta") == sentence


def test_a_name_that_one_node_has_and_no_name_are_right() -> None:
    assert (verbs.name_problem(SEEN, "code"), verbs.name_problem(SEEN, None)) == (None, None)


def test_a_pool_never_loses_more_than_half_of_its_servers() -> None:
    nodes = [f"gpu-0{number}" for number in range(1, 6)]
    fragments = registry(*((node, "chat", "m", "vllm") for node in nodes))
    assert wave_names([f"{node}/chat" for node in nodes], fragments) == [
        ["gpu-01/chat", "gpu-02/chat"],
        ["gpu-03/chat", "gpu-04/chat"],
        ["gpu-05/chat"],
    ]


def test_of_two_servers_one_stays_and_others_do_not_wait() -> None:
    fragments = registry(
        ("gpu-01", "chat", "m", "vllm"), ("gpu-02", "chat", "m", "vllm"), ("gpu-02", "code", "n", "vllm")
    )
    found = wave_names(["gpu-01/chat", "gpu-02/chat", "gpu-02/code"], fragments)
    assert found == [["gpu-01/chat", "gpu-02/code"], ["gpu-02/chat"]]


def test_two_services_of_one_node_replace_each_other() -> None:
    fragments = registry(("gpu-01", "a", "m", "vllm"), ("gpu-01", "bb", "m", "vllm"))
    assert wave_names(["gpu-01/a", "gpu-01/bb"], fragments) == [["gpu-01/a"], ["gpu-01/bb"]]


def test_two_backends_of_one_model_are_not_away_together() -> None:
    fragments = registry(("gpu-01", "a", "m", "vllm"), ("gpu-02", "bb", "m", "llamacpp"))
    assert wave_names(["gpu-01/a", "gpu-02/bb"], fragments) == [["gpu-01/a"], ["gpu-02/bb"]]


def test_drained_nodes_and_stopped_services_replace_nobody() -> None:
    servers = [(f"gpu-0{number}", "chat", "m", "vllm") for number in range(1, 5)]
    fragments = registry(*servers, **{"gpu-03": {"drained": True}})
    fragments[3]["services"][0]["stopped"] = True
    # Four servers, of which two get requests: one of these at a time. The others can go at once.
    assert wave_names([f"{node}/chat" for node, *_rest in servers], fragments) == [
        ["gpu-01/chat", "gpu-03/chat", "gpu-04/chat"],
        ["gpu-02/chat"],
    ]


def test_the_last_servers_of_a_model_are_named() -> None:
    fragments = registry(
        ("gpu-01", "chat", "m", "vllm"), ("gpu-02", "chat", "m", "llamacpp"), ("gpu-02", "code", "n", "vllm")
    )

    def last(*names: str) -> list[str]:
        wanted = [dict(zip(("node", "service"), name.split("/"), strict=True)) for name in names]
        return verbs.last_servers(wanted, fragments)

    assert last("gpu-01/chat") == last() == []
    assert last("gpu-02/code", "gpu-02/chat") == ["n (code on gpu-02)"]
    assert last("gpu-02/chat", "gpu-01/chat") == ["m (chat on gpu-01, chat on gpu-02)"]
    # What gets no requests replaces nobody, and is missed by nobody.
    fragments[1]["services"][0]["stopped"] = True
    assert (last("gpu-01/chat"), last("gpu-02/chat")) == (["m (chat on gpu-01)"], [])


def test_what_no_gateway_knows_waits_for_nothing() -> None:
    assert wave_names(["gpu-01/a", "gpu-02/a"], []) == [["gpu-01/a", "gpu-02/a"]]
    assert wave_names([], []) == []


def test_the_table_says_what_was_done() -> None:
    results = {
        "gpu-01": {
            "chat": {"changed": True},
            "code": {"changed": False},
            "old": {"failed": True, "changed": True, "msg": "gpu-01: service old: no\nLast lines"},
        }
    }
    after = {"gpu-01": [item("chat", "stopped"), item("code", "stopped"), item("old", "failed")]}
    found = verbs.rows(verbs.targets(SEEN, "stop"), "stop", SEEN, after, results)
    assert [(row["service"], row["done"], row["state"]) for row in found] == [
        ("chat", "stopped", "stopped"),
        ("code", "nothing to do", "stopped"),
        ("old", "failed", "failed"),
        ("chat", "not reached", "unknown"),
    ]
    assert [row["failed"] for row in found] == [False, False, True, True]
    assert found[2]["reason"] == "gpu-01: service old: no" and found[0]["reason"] is None
    assert verbs.lines(found)[:2] == [
        "node    service  backend   model     done           state",
        "gpu-01  chat     llamacpp  qwen3-8b  stopped        stopped",
    ]


def test_a_check_says_what_would_be_done_and_what_is_gone_is_removed() -> None:
    seen = {"gpu-01": [item("chat")]}
    results = {"gpu-01": {"chat": {"changed": True}}}
    targets = verbs.targets(seen, "remove")
    checked = verbs.rows(targets, "remove", seen, seen, results, check=True)
    done = verbs.rows(targets, "remove", seen, {"gpu-01": []}, results)
    assert [(row["done"], row["state"]) for row in [*checked, *done]] == [
        ("would be removed", "serving"),
        ("removed", "removed"),
    ]
    assert verbs.lines([]) == []
