# SPDX-License-Identifier: Apache-2.0
"""What holds for every plan, whatever the machine and the wishes."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MIB, catalog, device, facts, gpu_facts

CATALOG = catalog()
# Two more files for one model, so that the choice of a quantization is part of every property.
_BASE = CATALOG["models"]["qwen3-8b"]["gguf"][0]
CATALOG["models"]["qwen3-8b"]["gguf"] = [
    {**_BASE, "quantization": "Q8_0", "file": "q8.gguf", "size_bytes": 8_709_518_624, "sha256": "8" * 64},
    {**_BASE, "quantization": "Q6_K", "file": "q6.gguf", "size_bytes": 6_725_899_552, "sha256": "6" * 64},
    _BASE,
]
MODELS = sorted(name for name, entry in CATALOG["models"].items() if "gguf" in entry)

service_wishes = st.fixed_dictionaries(
    {"backend": st.just("llamacpp"), "model": st.sampled_from(MODELS)},
    optional={
        "context_length": st.sampled_from([300, 512, 2048, 5000, 8192]),
        "parallel": st.integers(1, 8),
        "kv_cache_type": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "port": st.integers(8000, 8010),
    },
)
lists = st.lists(service_wishes, min_size=1, max_size=4)
gpu_memory = st.lists(st.integers(4096, 98304), min_size=1, max_size=4)
host_memory = st.integers(2 * 1024, 256 * 1024)


def machine(host_mib: int, gpus: list[int]) -> dict[str, Any]:
    if not gpus:
        return facts(memory_total_bytes=host_mib * MIB)
    devices = [device(f"GPU {index}", size, "8.6", index=index) for index, size in enumerate(gpus)]
    return gpu_facts("cuda", devices, memory_total_bytes=host_mib * MIB)


def attempt(node: dict[str, Any], services: list[dict[str, Any]]) -> dict[str, Any] | str:
    try:
        return plan_node(node, {"host": "gpu-01", "inference_services": services}, CATALOG)
    except PlanError as error:
        return str(error)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(host_memory, st.one_of(st.just([]), gpu_memory), lists)
def test_memory_stays_in_budget_and_names_and_ports_are_unique(host_mib, gpus, services):
    node = machine(host_mib, gpus)
    plan = attempt(node, services)
    if isinstance(plan, str):
        assert all(line.startswith("gpu-01: ") for line in plan.splitlines())
        return
    planned = plan["services"]
    assert len({item["port"] for item in planned}) == len({item["name"] for item in planned}) == len(services)
    for pool in {item["memory"]["pool"] for item in planned}:
        shares = [item["memory"] for item in planned if item["memory"]["pool"] == pool]
        assert sum(item["total_bytes"] for item in shares) <= shares[0]["budget_bytes"]
    assert sum(item["memory_limit_bytes"] for item in planned) <= node["memory_total_bytes"]
    for item in planned:
        memory = item["memory"]
        parts = ("weights_bytes", "kv_cache_bytes", "overhead_bytes")
        assert sum(memory[part] for part in parts) == memory["total_bytes"]
        assert 0 < item["context_length"] <= CATALOG["models"][item["model"]]["context_length"]
        assert item["env"]["LLAMA_ARG_CTX_SIZE"] == str(item["context_length"] * item["parallel"])


@settings(max_examples=150, deadline=None)
@given(host_memory, st.integers(0, 64 * 1024), lists)
def test_more_host_memory_never_gives_less(host_mib, more, services):
    _compare(attempt(machine(host_mib, []), services), attempt(machine(host_mib + more, []), services))


@settings(max_examples=150, deadline=None)
@given(st.integers(4096, 98304), st.integers(0, 65536), lists)
def test_more_gpu_memory_never_gives_less(gpu_mib, more, services):
    _compare(attempt(machine(262144, [gpu_mib]), services), attempt(machine(262144, [gpu_mib + more]), services))


def _compare(less: dict[str, Any] | str, more: dict[str, Any] | str) -> None:
    if isinstance(less, str):
        return
    assert not isinstance(more, str)
    for before, after in zip(less["services"], more["services"], strict=True):
        assert after["context_length"] >= before["context_length"]
        assert after["parallel"] >= before["parallel"]
        assert after["model_file"]["size_bytes"] >= before["model_file"]["size_bytes"]


@settings(max_examples=50, deadline=None)
@given(host_memory, st.one_of(st.just([]), gpu_memory), lists)
def test_deterministic_independent_of_key_order_and_without_side_effects(host_mib, gpus, services):
    node, wishes = machine(host_mib, gpus), {"host": "gpu-01", "inference_services": services}
    before = copy.deepcopy((node, wishes, CATALOG))
    outcomes = []
    for arguments in ((node, wishes, CATALOG), (node, wishes, CATALOG), reversed_keys([node, wishes, CATALOG])):
        try:
            outcomes.append(plan_node(*arguments))
        except PlanError as error:
            outcomes.append({"error": str(error)})
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert (node, wishes, CATALOG) == before


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(0, 40))
def test_a_small_change_of_memory_changes_no_container(gibibytes, kibibytes):
    """A new kernel leaves a little more or less memory: nothing that a container is made of may follow it."""
    wishes = {"host": "gpu-01", "llamacpp_model": "smollm2-135m-instruct"}
    node = facts(memory_total_bytes=(gibibytes * 8 + 1) * GIB)
    other = facts(memory_total_bytes=(gibibytes * 8 + 1) * GIB - kibibytes * 1024)
    first, second = (plan_node(item, wishes, CATALOG)["services"][0] for item in (node, other))
    assert first["env"] == second["env"]
    assert first["memory_limit_bytes"] == second["memory_limit_bytes"]
