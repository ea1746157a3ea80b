# SPDX-License-Identifier: Apache-2.0
"""What holds for every plan of all backends together, whatever the machine and the wishes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MIB, catalog, device, facts, gpu_facts

CATALOG = catalog()
MODELS = {
    "llamacpp": ["qwen3-8b", "qwen3-32b", "smollm2-135m-instruct"],
    "ollama": ["qwen3-8b", "qwen3-4b"],
    "sglang": ["qwen3-8b", "llama-3.3-70b-instruct", "phi-4"],
    "vllm": ["qwen3-8b", "llama-3.3-70b-instruct", "phi-4", "gemma-3-12b-it"],
}
DRIVER = {"version": "580.95.05", "cuda_version": "13.0", "reboot_required": False}


@st.composite
def services(draw: Any) -> list[dict[str, Any]]:
    """Up to four services with names of their own."""
    backends = draw(st.lists(st.sampled_from(sorted(MODELS)), min_size=1, max_size=4))
    return [
        {
            "name": f"s{number}",
            "backend": backend,
            "model": draw(st.sampled_from(MODELS[backend])),
            **draw(st.fixed_dictionaries({}, optional={"context_length": st.sampled_from([512, 4096, 16384])})),
        }
        for number, backend in enumerate(backends)
    ]


machines = st.tuples(
    st.sampled_from([24576, 49140, 81559, 183359]),
    st.integers(0, 8),
    st.sampled_from(["8.6", "9.0"]),
    st.integers(32, 1024),
)


def node(gpu_mib: int, count: int, architecture: str, host_gib: int) -> dict[str, Any]:
    if not count:
        return facts(memory_total_bytes=host_gib * GIB)
    devices = [device(f"GPU {index}", gpu_mib, architecture, index=index) for index in range(count)]
    return gpu_facts("cuda", devices, memory_total_bytes=host_gib * GIB, driver=DRIVER)


def attempt(machine: dict[str, Any], wished: list[dict[str, Any]]) -> dict[str, Any] | str:
    try:
        return plan_node(machine, {"host": "gpu-01", "inference_services": wished}, CATALOG)
    except PlanError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(machines, services())
def test_budgets_units_and_ports(machine: tuple[int, int, str, int], wished: list[dict[str, Any]]) -> None:
    plan = attempt(node(*machine), wished)
    if isinstance(plan, str):
        assert all(line.startswith("gpu-01: ") for line in plan.splitlines())
        return
    planned = plan["services"]
    assert len({item["port"] for item in planned}) == len(planned) == len(wished)
    assert sorted(plan["start_order"]) == sorted(item["name"] for item in planned)
    taken: dict[str, int] = {}
    for item in planned:
        identities = [unit["identity"] for unit in item["units"]]
        assert len(set(identities)) == len(identities)
        for identity in identities:
            taken[identity] = taken.get(identity, 0) + item["memory"]["total_bytes"]
        model = CATALOG["models"][item["model"]]
        assert model["attention_heads"] % item["tensor_parallel_size"] == 0
        assert 0 < item["context_length"] <= model["context_length"]
    assert all(size <= machine[0] * MIB * 0.92 for size in taken.values())


@settings(max_examples=80, deadline=None)
@given(machines, services(), st.randoms(use_true_random=False))
def test_the_order_of_the_lists_changes_nothing(
    machine: tuple[int, int, str, int], wished: list[dict[str, Any]], order: random.Random
) -> None:
    before = attempt(node(*machine), wished)
    shuffled = list(wished)
    order.shuffle(shuffled)
    after = attempt(node(*machine), shuffled)
    if isinstance(before, str) or isinstance(after, str):
        assert isinstance(before, str) and isinstance(after, str)
        assert sorted(before.splitlines()) == sorted(after.splitlines())
        return
    by_name = [{item["name"]: item for item in plan["services"]} for plan in (before, after)]
    assert by_name[0] == by_name[1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(16, 100), st.integers(1, 60))
def test_more_memory_never_gives_a_smaller_context(backend: str, gib: int, more: int) -> None:
    wished = [{"backend": backend, "model": "qwen3-8b"}]
    plans = [attempt(node(size * 1024, 1, "9.0", 512), wished) for size in (gib, gib + more)]
    if isinstance(plans[0], str):
        return
    assert not isinstance(plans[1], str)
    small, large = (plan["services"][0] for plan in plans if not isinstance(plan, str))
    assert large["context_length"] >= small["context_length"]
    assert large["parallel"] >= small["parallel"] or large["memory"]["weights_bytes"] > small["memory"]["weights_bytes"]


def test_every_problem_of_a_node_is_told_at_once() -> None:
    wished = [
        {"name": "one", "backend": "vllm", "model": "no-such-model"},
        {"name": "two", "backend": "llamacpp", "model": "qwen3-8b", "context_length": 10_000_000},
        {"name": "three", "backend": "sglang", "model": "qwen3-8b", "gpu_layers": 3},
    ]
    with pytest.raises(PlanError) as refused:
        plan_node(node(81559, 2, "9.0", 256), {"host": "gpu-01", "inference_services": wished[2:]}, CATALOG)
    assert len(refused.value.problems) == 1 and "gpu_layers of service three" in str(refused.value)
    with pytest.raises(PlanError) as refused:
        plan_node(node(81559, 2, "9.0", 256), {"host": "gpu-01", "inference_services": wished[:2]}, CATALOG)
    assert [problem[:26] for problem in refused.value.problems] == [
        "gpu-01: model of service o",
        "gpu-01: context_length of ",
    ]


@pytest.mark.parametrize("backend", sorted(MODELS))
def test_what_is_advised_fits(backend: str) -> None:
    machine = node(24576, 1, "8.6", 64)
    wish = {"name": "s", "backend": backend, "model": "qwen3-8b", "context_length": 32768, "parallel": 64}
    text = attempt(machine, [wish])
    assert isinstance(text, str)
    setting, _, value = text.partition("; set ")[2].partition(" for that service")[0].partition(": ")
    advised = attempt(machine, [{**wish, setting: int(value)}])
    assert not isinstance(advised, str), advised


def test_every_service_that_is_refused_gets_advice_of_its_own() -> None:
    wish = {"backend": "llamacpp", "model": "qwen3-8b", "context_length": 32768, "parallel": 64}
    text = attempt(node(24576, 2, "8.6", 64), [{**wish, "name": "one"}, {**wish, "name": "two"}])
    assert isinstance(text, str)
    assert [line.count("; set ") for line in text.splitlines()] == [1, 1]


def test_a_small_cpu_node_serves_with_all_four_backends() -> None:
    """What /dev/shm may hold at most is no memory that is taken: with it, nothing but the floor would fit."""
    wished = [{"backend": backend, "model": "smollm2-135m-instruct"} for backend in ("llamacpp", "sglang", "vllm")]
    wished.append({"backend": "ollama", "model": "gemma-3-270m-it"})
    machine = facts(
        memory_total_bytes=23 * GIB, cpu={"architecture": "x86_64", "cores": 2, "flags": ["avx2", "avx512f"]}
    )
    found = plan_node(machine, {"host": "gpu-01", "inference_services": wished}, CATALOG)["services"]
    assert {service["backend"]: service["context_length"] for service in found} == dict.fromkeys(MODELS, 8192)
