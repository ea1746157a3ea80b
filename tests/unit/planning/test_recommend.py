# SPDX-License-Identifier: Apache-2.0
"""Which backends and models are recommended, why, and what would do better."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import BACKENDS, Catalog
from ansible_collections.fleet.inference.plugins.module_utils.planning.plan import recommended_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import (
    Node,
    Recommendation,
    effective_parameters,
    quality,
    rank,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import recommend as recommend_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend_fleet import recommend_fleet
from ansible_collections.fleet.inference.plugins.module_utils.planning.workloads import WORKLOADS
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MACHINES, catalog, cuda, device, facts, gpu_facts

CATALOG = catalog()
BOOK = Catalog("h", CATALOG)
MODELS = {name: BOOK.model(name, "the test") for name in BOOK.model_names}
H100S = gpu_facts(
    "cuda",
    [device("NVIDIA H100 80GB HBM3", 81920, "9.0", index=index) for index in range(8)],
    memory_total_bytes=1024 * GIB,
)
NODES = {
    **MACHINES,
    "8xh100": H100S,
    "xeon": facts(
        cpu={"architecture": "x86_64", "cores": 64, "flags": ["avx2", "avx512f"]}, memory_total_bytes=256 * GIB
    ),
}


def node_of(machine: Mapping[str, Any], book: Catalog = BOOK, **options: Any) -> Node:
    """A node with the real plan, and with these options."""
    options = {"host": "h", **options}
    wishes = {"host": options["host"], "inference_tier": options.get("tier")}
    return replace(recommended_node(machine, wishes, book), **options)


def recommend(
    machine: Mapping[str, Any], workload: str, book: Catalog = BOOK, measured: Any = None, **options: Any
) -> Recommendation:
    return recommend_node(node_of(machine, book, measured=measured, **options), workload, book)


def fits(machine: Mapping[str, Any], wishes: list[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The planned services, none when they do not fit."""
    try:
        return node_of(machine).fits(wishes)
    except PlanError:
        return ()


def chosen(machine: str, workload: str, **options: Any) -> list[tuple[str, str]]:
    node = NODES[machine]
    found = recommend(node, workload, BOOK, host=machine, **options)
    return [(wish["backend"], wish["model"]) for wish in found["services"]]


def test_the_quality_order_is_that_of_the_documented_rule():
    dense, mixture = MODELS["qwen3-32b"], MODELS["qwen3-30b-a3b"]
    assert effective_parameters(dense) == pytest.approx(dense.parameters)
    assert effective_parameters(mixture) == pytest.approx((30.532122624e9 * 3.353032704e9) ** 0.5)
    assert quality(dense) == pytest.approx(math.log2(dense.parameters / 1.5e9))
    assert quality(dense, ("tools", "vision")) == pytest.approx(quality(dense) + 0.75)
    likes = ("tools", "reasoning", "vision")
    # Twice the size, what it can do, the newer version of one size.
    for better, worse in [
        ("qwen3-32b", "qwen3-14b"),
        ("qwen3.5-27b", "qwen3-32b"),
        ("qwen3-32b", "qwen3-30b-a3b"),
        ("qwen3.6-27b", "qwen3.5-27b"),
    ]:
        assert rank(MODELS[better], likes) > rank(MODELS[worse], likes)


# The rules of the workloads: a single user, many users, shared prompts, the CPU and the edge, mixed.
@pytest.mark.parametrize(
    ("machine", "workload", "backends"),
    [
        ("rtx3090", "experimentation", ["ollama"]),
        ("h100", "chat", ["vllm"]),
        ("h100", "agents", ["sglang"]),
        ("h100", "coding", ["sglang"]),
        ("h100", "edge", ["llamacpp"]),
        ("h100", "mixed", ["sglang", "ollama"]),
        ("8xh100", "mixed", ["sglang", "ollama"]),
        ("cpu", "experimentation", ["llamacpp"]),
        ("cpu", "chat", ["llamacpp"]),
        ("cpu", "agents", ["llamacpp"]),
        ("cpu", "edge", ["llamacpp"]),
        ("cpu", "mixed", ["llamacpp"]),
        # No image of vLLM and SGLang for compute capability 7.0, of SGLang for Radeon, of both for Vulkan; vLLM serves
        # Radeon 16 bits alone, and a model of 4 times the size fits with llama.cpp.
        ("v100", "chat", ["llamacpp"]),
        ("v100", "agents", ["llamacpp"]),
        ("rx7900", "agents", ["llamacpp"]),
        ("arc", "chat", ["llamacpp"]),
        ("mi300x", "agents", ["sglang"]),
    ],
)
def test_the_workload_decides_on_the_backend(machine, workload, backends):
    assert [backend for backend, _model in chosen(machine, workload)] == backends


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
@pytest.mark.parametrize("machine", sorted(NODES))
def test_what_is_recommended_suits_fits_and_is_explained(machine, workload):
    node = NODES[machine]
    found = recommend(node, workload, BOOK, host=machine)
    assert json.loads(json.dumps(found)) == found
    assert found["services"] and fits(node, found["services"])
    for wish in found["services"]:
        model = MODELS[wish["model"]]
        assert set(WORKLOADS[workload].needs) <= set(model.capabilities)
        assert not model.gated
        assert any(sentence.startswith(f"{model.name} (") for sentence in found["why"])
    assert len(found["why"]) == len(set(found["why"]))


def test_the_best_that_fits_is_taken():
    # 80 GiB hold 27 to 32 billion parameters in 16 bits, not those of the next class.
    ((_backend, name),) = chosen("h100", "agents")
    better = [
        model
        for model in MODELS.values()
        if rank(model, ("reasoning", "vision")) > rank(MODELS[name], ("reasoning", "vision"))
    ]
    asked = {"backend": "sglang", "context_length": 32768, "parallel": 4}
    for model in better:
        if {"chat", "tools"} <= set(model.capabilities) and model.safetensors and not model.gated:
            assert not fits(NODES["h100"], [{**asked, "model": model.name}]), model.name


def test_a_model_without_room_for_the_workload_gives_way():
    # Alone in the memory, the larger model would be left with less context than agents need.
    node = NODES["rtx3090"]
    found = recommend(node, "agents", BOOK)
    planned = fits(node, found["services"])
    assert all(item["context_length"] >= 32768 and item["parallel"] >= 4 for item in planned)


def test_less_room_is_told_where_no_model_has_enough():
    node = cuda("Tesla T4", 3000, "7.5")
    found = recommend(node, "agents", BOOK)
    assert any("; the workload needs 32768 tokens for each of 4 requests" in sentence for sentence in found["why"])
    assert "with more memory the workload gets the context and the requests at once that it needs" in found["better"]


def test_a_cpu_gets_a_model_that_it_answers_fast_with():
    # 24 GiB would hold 32 billion parameters, with which two cores answer a word in seconds.
    ((_backend, small),) = chosen("cpu", "chat")
    ((_backend, larger),) = chosen("xeon", "chat")
    assert MODELS[small].parameters <= 10**9
    active = MODELS[larger].active_parameters or MODELS[larger].parameters
    assert 3 * 10**9 <= active <= 10 * 10**9


def test_the_fastest_is_taken_where_all_are_slow():
    node = facts(cpu={"architecture": "x86_64", "cores": 1, "flags": ["avx2"]})
    found = recommend(node, "coding", BOOK)
    assert [wish["model"] for wish in found["services"]] == ["qwen2.5-coder-1.5b-instruct"]
    assert any("is the fastest that fits" in sentence for sentence in found["why"])


def test_unified_memory_is_slower_than_that_of_a_card():
    # 32 billion parameters in 16 bits fit into 96 GiB, and would be read four times a second.
    ((_backend, name),) = chosen("gb10", "agents")
    assert (MODELS[name].active_parameters or MODELS[name].parameters) < 10**10


def test_gated_models_need_leave():
    node = NODES["8xh100"]
    llama = {name: entry for name, entry in catalog()["models"].items() if name.startswith("llama-")}
    book = Catalog("h", {**catalog(), "models": {**llama, "smollm3-3b": catalog()["models"]["smollm3-3b"]}})
    without = recommend(node, "chat", book)
    assert {wish["model"] for wish in without["services"]} == {"smollm3-3b"}
    assert (
        "llama-3.1-405b-instruct is better and gated: accept its licence and set inference_gated_models: true"
        in without["better"]
    )
    allowed = recommend(node, "chat", book, gated=True)
    assert {wish["model"] for wish in allowed["services"]} == {"llama-3.1-405b-instruct"}
    assert not any("gated" in sentence for sentence in allowed["better"])


def test_a_node_with_many_gpus_serves_a_small_model_many_times():
    book = Catalog("h", {**catalog(), "models": {"qwen3-8b": catalog()["models"]["qwen3-8b"]}})
    found = recommend(H100S, "chat", book)
    assert [(wish["backend"], wish["model"]) for wish in found["services"]] == [("vllm", "qwen3-8b")] * 8
    assert "8 services of one model share the load of many users" in found["why"]
    single = recommend(H100S, "agents", book)
    assert len(single["services"]) == 1


def test_what_would_do_better_is_told():
    better = {name: recommend(NODES[name], "agents", BOOK)["better"] for name in NODES}
    assert any(text.startswith("for sglang: another GPU (GPU 0 (Tesla V100") for text in better["v100"])
    assert "a GPU with 8 GiB or more would serve larger models, and these many times faster" in better["cpu"]
    assert any(" is better and takes " in text and "more or larger GPUs" in text for text in better["h100"])
    old = cuda("NVIDIA A100", 81920, "8.0", driver="515.65.01", version="11.7")
    found = recommend(old, "agents", BOOK, backends=["sglang", "ollama"], tier="cpu")
    assert [wish["backend"] for wish in found["services"]] == ["ollama"]


def test_a_driver_that_is_too_old_is_told():
    old = cuda("NVIDIA A100", 81920, "8.0", driver="560.35.03", version="12.6")
    entry = {**catalog()["engines"]["sglang"]}
    entry["variants"] = {"cuda": entry["variants"]["cuda"]}
    book = Catalog("h", {**catalog(), "engines": {**catalog()["engines"], "sglang": entry}})
    found = recommend(old, "agents", book)
    assert [wish["backend"] for wish in found["services"]] == ["vllm"]
    assert "for sglang: install driver 580 or newer" in found["better"]
    assert any(
        text.startswith("sglang does not run here: GPU 0 (NVIDIA A100) has driver 560.35.03") for text in found["why"]
    )


def measured(backend: str, model: str = "qwen3-8b", **numbers: Any) -> dict[str, Any]:
    return {"backend": backend, "model": model, "concurrency": 16, **numbers}


def test_what_was_measured_on_the_node_comes_before_the_rules():
    results = [measured("vllm", tokens_per_second=900), measured("sglang", tokens_per_second=1100)]
    assert chosen("h100", "chat")[0][0] == "vllm"
    assert chosen("h100", "chat", measured=results)[0][0] == "sglang"
    found = recommend(NODES["h100"], "chat", BOOK, results)
    assert "measured on this node, sglang does better than the order of the rules says" in found["why"]
    assert "there are no measured results of this node, so the rules decide" not in found["why"]
    # The other way round, measured results agree with the rules.
    agreed = [measured("vllm", tokens_per_second=1200), measured("sglang", tokens_per_second=1100)]
    assert chosen("h100", "chat", measured=agreed)[0][0] == "vllm"


def test_only_like_is_compared_with_like():
    for other in ({"model": "qwen3-4b"}, {"concurrency": 64}):
        results = [measured("vllm", tokens_per_second=900), measured("sglang", **{"tokens_per_second": 1100, **other})]
        assert chosen("h100", "chat", measured=results)[0][0] == "vllm"


def test_a_single_user_is_served_by_the_earliest_token():
    results = [
        measured("ollama", tokens_per_second=900, time_to_first_token_ms=80, concurrency=1),
        measured("llamacpp", tokens_per_second=500, time_to_first_token_ms=40, concurrency=1),
    ]
    assert chosen("h100", "experimentation", measured=results)[0][0] == "llamacpp"


def test_a_backend_that_was_not_measured_keeps_its_place():
    results = [measured("sglang", tokens_per_second=500), measured("llamacpp", tokens_per_second=900)]
    assert chosen("h100", "chat", measured=results)[0][0] == "vllm"


def test_a_model_measured_to_be_slow_is_left_out_and_a_fast_one_let_in():
    ((backend, name),) = chosen("h100", "agents")
    slow = measured(backend, name, tokens_per_second=40, concurrency=8)
    assert (backend, name) not in chosen("h100", "agents", measured=[slow])
    fast = measured("llamacpp", "qwen3-14b", tokens_per_second=16, concurrency=1)
    assert chosen("cpu", "edge", measured=[fast]) == [("llamacpp", "qwen3-14b")]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("fast", "h: measured result 0 is 'fast'; give a dictionary with the names of a backend and a model"),
        (
            {"backend": "vllm"},
            "h: measured result 0 is {'backend': 'vllm'}; give a dictionary with the names of a backend and a model",
        ),
        (
            measured("vllm", tokens_per_second="many"),
            "h: measured result 0 has tokens_per_second 'many'; give a number above 0, or leave it out",
        ),
        (
            measured("vllm", concurrency=0),
            "h: measured result 0 has concurrency 0; give a number above 0, or leave it out",
        ),
        (
            measured("vllm", time_to_first_token_ms=float("nan")),
            "h: measured result 0 has time_to_first_token_ms nan; give a number above 0, or leave it out",
        ),
    ],
)
def test_wrong_results_are_refused(result, words):
    with pytest.raises(PlanError) as caught:
        recommend(NODES["h100"], "chat", BOOK, [result], host="h")
    assert str(caught.value) == words


def test_wrong_input_is_refused_in_one_sentence():
    with pytest.raises(PlanError) as caught:
        recommend(NODES["cpu"], "chatt", BOOK, host="h")
    assert str(caught.value) == (
        "h: the workload is 'chatt', which is not known; did you mean chat? "
        "known: agents, chat, coding, edge, experimentation, mixed"
    )
    with pytest.raises(PlanError, match=r"^h: its tier is 'None'; gather the facts with fleet.inference.gpu_facts$"):
        recommend_node(Node({}, nothing_fits, "h"), "chat", BOOK)
    with pytest.raises(PlanError, match=r"^h: no model of the catalog can be served for the workload chat; "):
        recommend_node(Node(NODES["cpu"], nothing_fits, "h"), "chat", BOOK)
    empty = Catalog("h", {"models": {}, "engines": catalog()["engines"]})
    with pytest.raises(PlanError, match=r"^h: no model of the catalog can be served for the workload coding"):
        recommend(NODES["h100"], "coding", empty)


def test_a_wrong_entry_of_the_catalog_is_not_recommended():
    broken = catalog()
    ((_backend, name),) = chosen("h100", "agents")
    broken["models"][name]["layers"] = None
    found = recommend(NODES["h100"], "agents", Catalog("h", broken))
    assert name not in {wish["model"] for wish in found["services"]}


def nothing_fits(_wishes: object) -> list[dict[str, Any]]:
    raise PlanError("there is not enough memory")


def fleet(*machines: str) -> dict[str, Node]:
    hosts = {f"{name}-{number}": NODES[name] for number, name in enumerate(machines)}
    return {host: node_of(machine, host=host) for host, machine in hosts.items()}


def models_of(found: Mapping[str, Any]) -> dict[str, set[str]]:
    return {name: {wish["model"] for wish in item["services"]} for name, item in found["nodes"].items()}


def test_a_chat_fleet_serves_one_model_many_times():
    found = recommend_fleet(fleet("h100", "mi300x", "h100", "8xh100").values(), "chat", BOOK)
    # The larger nodes could serve larger models; replicas share the load.
    assert set(map(tuple, models_of(found).values())) == {(found["common_model"],)}
    assert len(found["nodes"]["8xh100-3"]["services"]) > 1
    assert found["better"] == []


def test_what_cannot_serve_the_common_model_shares_another():
    found = recommend_fleet(fleet("h100", "h100", "h100", "t4", "t4").values(), "chat", BOOK)
    models = models_of(found)
    assert models["h100-0"] == models["h100-1"] == models["h100-2"] == {found["common_model"]}
    assert models["t4-3"] == models["t4-4"] != models["h100-0"]
    assert found["better"] == [
        f"{found['common_model']} cannot be served well on t4-3, t4-4: larger or newer nodes would"
    ]


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_at_least_half_of_a_fleet_shares_a_model(workload):
    nodes = fleet("h100", "rtx3090", "mi300x", "8xh100", "t4", "h100")
    found = recommend_fleet(nodes.values(), workload, BOOK)
    sharing = [name for name, models in models_of(found).items() if found["common_model"] in models]
    assert 2 * len(sharing) >= len(nodes)
    for name, item in found["nodes"].items():
        assert nodes[name].fits(item["services"]) is not None
    assert json.loads(json.dumps(found)) == found


def test_one_bad_node_does_not_stop_a_fleet():
    nodes = {**fleet("h100"), "broken": Node(NODES["cpu"], nothing_fits, "broken")}
    found = recommend_fleet(nodes.values(), "chat", BOOK)
    assert found["nodes"]["broken"]["services"] == []
    assert found["better"][0].startswith("broken: no model of the catalog can be served for the workload chat")
    with pytest.raises(PlanError, match=r"^broken: no model"):
        recommend_fleet([nodes["broken"]], "chat", BOOK)
    assert recommend_fleet([], "chat", BOOK)["nodes"] == {}


def shuffled(value: Any, mix: random.Random) -> Any:
    """Return the same with the keys of all dictionaries in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], mix) for key in mix.sample(list(value), len(value))}
    return [shuffled(item, mix) for item in value] if isinstance(value, list) else value


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(NODES)), st.sampled_from(sorted(WORKLOADS)), st.integers(0, 10**6))
def test_the_order_of_the_input_does_not_matter(machine, workload, seed):
    mix = random.Random(seed)
    node = NODES[machine]
    results = [
        measured(backend, model, tokens_per_second=speed, time_to_first_token_ms=1000 - speed)
        for model in ("qwen3-8b", "qwen3-14b")
        for backend, speed in (("vllm", 300), ("sglang", 200), ("ollama", 500), ("llamacpp", 400))
    ]
    first = recommend(node, workload, BOOK, results)
    mix.shuffle(results)
    book = Catalog("h", shuffled(CATALOG, mix))
    backends = mix.sample(BACKENDS, len(BACKENDS))
    assert recommend(shuffled(node, mix), workload, book, results, backends=backends) == first


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(sorted(WORKLOADS)), st.integers(0, 10**6))
def test_the_order_of_the_nodes_does_not_matter(workload, seed):
    nodes = fleet("h100", "rtx3090", "cpu", "8xh100")
    names = random.Random(seed).sample(list(nodes), len(nodes))
    again = recommend_fleet((nodes[name] for name in names), workload, BOOK)
    assert again == recommend_fleet(nodes.values(), workload, BOOK)


@settings(max_examples=20, deadline=None)
@given(st.integers(8192, 98304), st.integers(0, 65536), st.sampled_from(["chat", "agents", "coding"]))
def test_more_memory_never_gives_a_smaller_model(memory, more, workload):
    def best(size: int) -> float | None:
        node = cuda("NVIDIA H100", size, "9.0")
        found = recommend(node, workload, BOOK, backends=["sglang"])
        if any("; the workload needs " in sentence for sentence in found["why"]):
            return None
        return max(quality(MODELS[wish["model"]], WORKLOADS[workload].likes) for wish in found["services"])

    less = best(memory)
    if less is not None:
        found = best(memory + more)
        assert found is not None and found >= less
