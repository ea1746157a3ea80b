# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import (
    GatewayError,
    dump_fragment,
    fragment_from_plan,
    load_fragment,
    validate_fragment,
    validate_fragments,
)
from gateway_samples import TWO_NODES, fragment, service


def test_a_plan_becomes_a_fragment() -> None:
    plan = {
        "schema_version": 1,
        "node": "gpu-01",
        "address": "10.0.0.11",
        "tier": "cpu",
        "models": [],
        "services": [
            {**service("b", backend="ollama", model="qwen3:0.6b", health_path=None), "image": "x", "env": {"A": "b"}},
            {**service("a"), "memory": {}},
        ],
    }
    made = fragment_from_plan(plan)
    assert made["drained"] is False
    assert [item["name"] for item in made["services"]] == ["a", "b"]
    assert made["services"][0] == service("a")
    assert made["services"][1]["health_path"] == "/"
    assert load_fragment(dump_fragment(made), "x") == made


def test_a_service_of_several_models_has_an_entry_for_each() -> None:
    models = [
        {"name": "b", "context_length": 2048, "parallel": 1},
        {"name": "a", "context_length": 4096, "parallel": 4},
    ]
    plan = {
        "node": "gpu-01",
        "address": "10.0.0.11",
        "services": [{**service("ollama", backend="ollama", model="b"), "models": models}],
    }
    made = fragment_from_plan(plan)
    keys = ("name", "model", "port", "context_length", "parallel")
    assert [tuple(item[key] for key in keys) for item in made["services"]] == [
        ("ollama", "a", 8005, 4096, 4),
        ("ollama", "b", 8005, 2048, 1),
    ]
    assert load_fragment(dump_fragment(made), "x") == made


def test_a_node_without_services_is_a_fragment() -> None:
    assert validate_fragment({"schema_version": 1, "node": "n", "address": "::1", "services": []})["services"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"node": "../etc"}, ["node name", "letters"]),
        ({"schema_version": 9}, ["schema_version 9", "site.yml"]),
        ({"address": "10.0.0.1 check"}, ["address", "IP address"]),
        ({"drained": "yes"}, ["drained", "true or false"]),
        ({"services": {}}, ["services", "list"]),
        ({"services": ["x"]}, ["not a mapping"]),
        ({"services": [service(), service()]}, ["llamacpp twice", "unique"]),
        ({"services": [service(), service(model="m", port=8006)]}, ["llamacpp with two backends or ports", "unique"]),
        ({"services": [service(), service(model="m", backend="ollama")]}, ["llamacpp with two backends or ports"]),
        ({"services": [service("Bad Name")]}, ["Bad Name"]),
        ({"services": [service(port=0)]}, ["port 0", "65535"]),
        ({"services": [service(port=True)]}, ["port True"]),
        ({"services": [service(model="a b")]}, ["model 'a b'"]),
        ({"services": [service(backend=None)]}, ["backend None"]),
        ({"services": [service(stopped="soon")]}, ["stopped 'soon'", "true or false"]),
        ({"services": [service(context_length=-1)]}, ["context_length -1"]),
        ({"services": [service(health_path="/x\nserver evil")]}, ["health_path"]),
    ],
)
def test_a_bad_fragment_is_refused_in_one_sentence(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(GatewayError) as raised:
        validate_fragment({**fragment("gpu-01", "10.0.0.11"), **change}, "/registry/gpu-01.json")
    message = str(raised.value)
    assert message.startswith("/registry/gpu-01.json")
    assert message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message


def test_newlines_do_not_slip_through_the_end_of_a_name() -> None:
    with pytest.raises(GatewayError):
        validate_fragment(fragment("gpu-01\n", "10.0.0.11"))
    with pytest.raises(GatewayError):
        validate_fragment(fragment("gpu-01", "10.0.0.11\n"))


def test_broken_json_names_the_file_and_the_remedy() -> None:
    with pytest.raises(GatewayError, match=r"/r/gpu-01\.json is not valid JSON .*delete it and run site\.yml"):
        load_fragment('{"node": ', "/r/gpu-01.json")


def test_several_fragments_are_sorted_and_unique() -> None:
    assert [item["node"] for item in validate_fragments(TWO_NODES)] == ["gpu-01", "gpu-02"]
    with pytest.raises(GatewayError, match="gpu-01 has two fragments"):
        validate_fragments([fragment("gpu-01", "a"), fragment("gpu-01", "b")])
