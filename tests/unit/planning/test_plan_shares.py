# SPDX-License-Identifier: Apache-2.0
"""What services on one GPU really ask for: the launch flags, read as the engines read them, in the order of starts."""

from __future__ import annotations

from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_sglang import ROUNDING
from ansible_collections.fleet.inference.plugins.module_utils.planning.tensor_engines import CONTEXT_BYTES
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from planning_machines import GIB, MIB, catalog, device, gpu_facts
from tensor_engine_cases import options

CATALOG = catalog()
DRIVER = {"version": "580.95.05", "cuda_version": "13.0", "reboot_required": False}
MODELS = {
    "llamacpp": ["qwen3-8b", "smollm2-135m-instruct"],
    "ollama": ["qwen3-8b", "qwen3-4b"],
    "sglang": ["qwen3-8b", "qwen3-0.6b", "gpt-oss-20b", "qwen3.5-9b"],
    "vllm": ["qwen3-8b", "qwen3-0.6b", "gemma-3-4b-it", "qwen3.5-9b"],
}
wish = st.sampled_from(sorted(MODELS)).flatmap(
    lambda backend: st.fixed_dictionaries(
        {
            "backend": st.just(backend),
            "model": st.sampled_from(MODELS[backend]),
            "gpus": st.sampled_from([[0], [0], [0, 1]]),
        },
        optional={"context_length": st.sampled_from([512, 4096, 16384]), "parallel": st.integers(1, 8)},
    )
)


def started(item: dict[str, Any], total: int, free: int, used: int) -> int:
    """Return what a service takes of a GPU with so many bytes free at its start; no service has ``used`` of it."""
    memory, flags = item["memory"], options(tuple(item["arguments"])) if item["arguments"] else {}
    if item["backend"] == "vllm":
        utilization = float(flags["--gpu-memory-utilization"])
        # request_memory: what is asked for must be free once the process has its context.
        assert utilization * total <= free - CONTEXT_BYTES
        if "--kv-cache-memory-bytes" in flags:
            return memory["weights_bytes"] + memory["overhead_bytes"] + int(flags["--kv-cache-memory-bytes"])
        return int(utilization * total)
    if item["backend"] == "sglang":
        beside = memory["overhead_bytes"] - ROUNDING
        static = float(flags["--mem-fraction-static"]) * (free - CONTEXT_BYTES)
        # Weights and KV cache have the planned room; what others use is missing in the cache.
        assert static >= memory["weights_bytes"] + memory["kv_cache_bytes"] - used
        if "--max-total-tokens" in flags:
            # A share of more than was planned to be free is more, but the pool holds no more tokens than this.
            part = int(flags["--max-total-tokens"]) / item["concurrency"]["kv_cache_tokens"]
            static = min(static, memory["weights_bytes"] + memory["kv_cache_bytes"] * part)
        return int(static) + beside
    if item["backend"] == "ollama":
        assert int(item["env"]["OLLAMA_GPU_OVERHEAD"]) >= total - memory["share_bytes"]
    return int(memory["total_bytes"])


def decisions(*wished: dict[str, Any]) -> dict[str, list[str]]:
    """Return the decisions of services on a node with two GPUs of 80 GiB."""
    devices = [device("GPU", 81920, "9.0", index=index) for index in range(2)]
    node = gpu_facts("cuda", devices, memory_total_bytes=512 * GIB, driver=DRIVER)
    plan = plan_node(node, {"host": "gpu-01", "inference_services": list(wished)}, CATALOG)
    return {item["name"]: item["decisions"] for item in plan["services"]}


def test_shares_and_the_order_of_starts_are_told() -> None:
    said = decisions(
        {"backend": "ollama", "model": "qwen3-8b", "gpus": [0]},
        {"backend": "vllm", "model": "qwen3-8b", "gpus": [0]},
        {"backend": "sglang", "model": "qwen3-8b", "gpus": [1]},
    )
    assert "starts before ollama: vLLM starts only when its share of the whole memory is free" in said["vllm"]
    assert "starts after vllm: Ollama looks anew at what is free whenever it loads a model" in said["ollama"]
    assert not [line for line in said["sglang"] if line.startswith("starts")]
    assert "memory 73.6 GiB of each unit (92 %): all that services may take, for it is alone there" in said["sglang"]
    (share,) = [line for line in said["vllm"] if line.startswith("memory ") and " of each unit (" in line]
    assert share.endswith("what it needs by estimate, beside ollama; all services together get at most 92 %")


def test_choices_and_wishes_are_told() -> None:
    said = decisions({"backend": "vllm", "model": "llama-3.3-70b-instruct"})["vllm"]
    for words in (
        "placed on GPU 0-1 (GPU): 2 GPUs: the smallest number on which a useful setting fits",
        "2 units: tensor parallel 2, by which 64 attention heads and 8 KV heads divide",
        "quantization fp8: the best of bf16, fp8, nvfp4, awq that leaves memory for requests",
        "KV cache type auto: the default, 16 bits a value",
        "dtype auto: the type of the model's own weights",
    ):
        assert words in said
    wish = {"kv_cache_type": "fp8", "memory_share": 0.8, "max_requests": 7, "quantization": "fp8", "gpus": 2}
    said = decisions({"backend": "vllm", "model": "llama-3.3-70b-instruct", **wish})["vllm"]
    for words in ("KV cache type fp8: wished", "quantization fp8: wished", "at most 7 requests at once: wished"):
        assert words in said
    assert [line for line in said if line.startswith("gpu memory utilization 0.8: wished")]
    assert [line for line in said if line.startswith("placed on") and line.endswith("2 GPUs: wished")]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([24576, 49140, 81559, 183359]),
    st.lists(wish, min_size=1, max_size=4),
    st.sampled_from([0, 300 * MIB]),
)
def test_what_is_asked_of_a_gpu_fits_in_the_order_of_starts(mib: int, wished: list[dict[str, Any]], used: int) -> None:
    devices = [device(f"GPU {index}", mib, "9.0", index=index) for index in range(2)]
    node = gpu_facts("cuda", devices, memory_total_bytes=512 * GIB, driver=DRIVER)
    named = [{**item, "name": f"s{number}"} for number, item in enumerate(wished)]
    try:
        plan = plan_node(node, {"host": "gpu-01", "inference_services": named}, CATALOG)
    except PlanError:
        assume(False)
    services = {item["name"]: item for item in plan["services"]}
    total = mib * MIB
    taken = {item["uuid"]: used for item in devices}
    for name in plan["start_order"]:
        item = services[name]
        places = [unit["identity"] for unit in item["units"]]
        free = total - max(taken[place] for place in places)
        asked = started(item, total, free, used)
        for place in places:
            taken[place] += asked
    for place, size in taken.items():
        here = [item for item in plan["services"] if place in {unit["identity"] for unit in item["units"]}]
        event(f"{len(here)} services on a GPU")
        assert size - used <= total * 0.92
        assert sum(item["memory"]["share_bytes"] for item in here) <= total * 0.92
